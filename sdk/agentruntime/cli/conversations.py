"""`agent conversations`: what was said, for callers and, with `--principal`, for operators. Wakes no agent."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from agentruntime import errors, files, units
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import conversation_service_pb2_grpc
from agentruntime.cli import output, platform, transcript
from agentruntime.client.sync import Client

_COLUMNS = ["CONVERSATION", "AGENT", "PRINCIPAL", "CHANGED (UTC)", "EVENTS", "SIZE"]
Agent = Annotated[str, typer.Argument(help="An agent.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="A conversation, as `agent conversations list` shows it.")]
Principal = Annotated[
    str, typer.Option(metavar="PRINCIPAL", help="Whose it is, like key:ci; for operators. By default yours.")
]


def list_(
    agent: Annotated[str | None, typer.Argument(help="Only those with this agent.")] = None,
    *,
    all_: Annotated[bool, typer.Option("--all", help="Those of every caller; for operators.")] = False,
    format_: output.Output = None,
) -> None:
    """List conversations, those that changed last first."""
    with platform.connect() as client:
        found = list(client.conversations(agent, all_principals=all_))
    if output.wants_json(format_):
        output.print_json([output.as_data(each) for each in found])
        return
    output.print_table(_COLUMNS, [_row(each) for each in found])
    if not found and not all_:
        output.note("you have none; --all shows those of every caller, to operators")


def show(
    agent: Agent,
    id_: Id,
    *,
    principal: Principal = "",
    events: Annotated[bool, typer.Option("--events", help="Every event, not only what was said.")] = False,
    format_: output.Output = None,
) -> None:
    """Show what was said in a conversation."""
    with platform.connect() as client:
        conversation = _get(client, agent, id_, principal)
        kept = _events(client, conversation, agent, principal)
        if output.wants_json(format_):
            data = [output.as_data(event) for event in kept]
            output.print_json({"conversation": output.as_data(conversation), "events": data})
            return
        print(_sentence(conversation))
        for event in kept:
            line = _event_line(event) if events else _said_line(event)
            if line:
                print(output.harmless(line))


def export(
    agent: Agent,
    id_: Id,
    *,
    file: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there; by default to stdout.")
    ] = None,
    principal: Principal = "",
) -> None:
    """Write all events of a conversation, each as JSON in a line, with nothing left out."""
    with platform.connect() as client:
        kept = _events(client, _get(client, agent, id_, principal), agent, principal)
        if file is None:
            for event in kept:
                output.print_json_line(output.as_data(event))
            return
        count = _write(file, kept)
    output.note(f"{count} events of {id_} are in {file}")


def delete(
    agent: Agent,
    id_: Id,
    *,
    principal: Principal = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Without asking.")] = False,
    format_: output.Output = None,
) -> None:
    """Delete a conversation with all its events and its state. What runs in it is cancelled."""
    with platform.connect() as client:
        if not yes:
            if not sys.stdin.isatty():
                raise errors.InvalidArgument("nobody is there to be asked; say --yes to delete it")
            conversation = _get(client, agent, id_, principal)
            typer.confirm(f"Delete {_sentence(conversation)}?", abort=True, err=True)
        request = proto.DeleteConversationRequest(conversation_id=id_, agent=agent, principal=principal)
        _stub(client).DeleteConversation(request)
    if output.wants_json(format_):
        output.print_json({"deleted": id_})
    else:
        print(f"deleted {id_}")


def _stub(client: Client) -> conversation_service_pb2_grpc.ConversationServiceStub:
    # To no agent: the gateway has the log, and a conversation's agent may sleep, or be gone.
    return client.stub(conversation_service_pb2_grpc.ConversationServiceStub, agent="")


def _get(client: Client, agent: str, id_: str, principal: str) -> proto.Conversation:
    request = proto.GetConversationRequest(conversation_id=id_, agent=agent, principal=principal)
    try:
        return _stub(client).GetConversation(request).conversation
    except errors.ConversationNotFound:
        if not principal:
            output.note(
                "you have none of that id; operators see another caller's by --principal, and whose there are by "
                "`agent conversations list --all`"
            )
        raise


def _events(client: Client, of: proto.Conversation, agent: str, principal: str) -> Iterator[proto.Event]:
    """All that are kept, however long it takes."""
    request = proto.WatchConversationRequest(
        conversation_id=of.conversation_id,
        after_sequence=max(of.first_sequence, 1) - 1,
        agent=agent,
        principal=principal,
    )
    for response in _stub(client).WatchConversation(request, timeout=math.inf):
        yield response.event


def _write(file: Path, events: Iterator[proto.Event]) -> int:
    """How many there were. The file is there once it is whole."""
    count = 0
    try:
        with files.replacing(file) as stream:
            for event in events:
                stream.write(output.json_line(output.as_data(event)).encode() + b"\n")
                count += 1
    except OSError as error:
        raise errors.InvalidArgument(f"{file} cannot be written: {error.strerror}; name another file") from None
    return count


def _row(each: proto.Conversation) -> list[str]:
    return [
        each.conversation_id,
        each.agent,
        each.principal,
        each.changed_at.ToDatetime().strftime("%Y-%m-%d %H:%M:%S"),
        str(_count(each)),
        units.format_size(each.bytes),
    ]


def _count(of: proto.Conversation) -> int:
    return of.last_sequence - of.first_sequence + 1 if of.first_sequence else 0


def _sentence(of: proto.Conversation) -> str:
    changed = of.changed_at.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")
    size = units.format_size(of.bytes)
    return (
        f"conversation {of.conversation_id} of {of.principal} with {of.agent}: {_count(of)} events, {size}, last "
        f"changed at {changed} UTC"
    )


def _said_line(event: proto.Event) -> str:
    said = transcript.said(event)
    return "{}  {}: {}".format(transcript.time_of(event), *said) if said else ""


def _event_line(event: proto.Event) -> str:
    """An event in a line: number, time, lease, message, kind and what it says."""
    kind = event.WhichOneof("content") or "unknown"
    head = f"{event.sequence}  {transcript.time_of(event)}  token {event.token}  {event.message_id or '-'}  {kind}"
    return f"{head}  {transcript.detail(event)}".rstrip()


COMMANDS = {"list": list_, "show": show, "export": export, "delete": delete}
