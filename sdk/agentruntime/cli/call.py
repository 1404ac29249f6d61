"""`agent call`."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_pb2
from agentruntime.cli import connection, output, platform
from agentruntime.client.sync import Client
from agentruntime.units import parse_duration

_CONVERSATIONS = "uapi.v1.ConversationService"
# For a look at the agent once its call has failed.
_LOOK_S = 2.0


def command(
    agent: Annotated[str, typer.Argument(help="An agent, or one of its workers.")],
    prompt: Annotated[str | None, typer.Argument(help="For agents that generate text; read from stdin if -.")] = None,
    *,
    service: Annotated[str | None, typer.Option(help="A service of the agent, with --method.")] = None,
    method: Annotated[str | None, typer.Option(help="A unary method of that service.")] = None,
    data: Annotated[str | None, typer.Option(metavar="JSON", help="The request, by its field names.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 always takes the likeliest token.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=0, help="The most tokens; 0 leaves it to the agent.")] = 0,
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="An API key; UAPI_AUTH_TOKEN is the same, and `ps` hides it.")
    ] = None,
    timeout: Annotated[str | None, typer.Option(help="Like 30s; UAPI_TIMEOUT by default, else 30s.")] = None,
    format_: output.Output = None,
) -> None:
    """Call an agent: a prompt, or any unary method with JSON data.

    A prompt's answer is printed while it is generated; with --output json it is printed whole, with its token count.
    """
    if bool(service) != bool(method):
        raise errors.InvalidArgument("--service and --method belong together; give both, and --data with the request")
    wait_s = parse_duration(timeout) if timeout else None
    with platform.connect(connection.config(api_key)) as client, _told_where_to_look(client, agent):
        if service and method:
            request = {"service": service, "method": method, "data": _json(data)}
            output.print_json(client.call_agent(agent, request, timeout_s=wait_s))
            return
        if data is not None:
            raise errors.InvalidArgument("--data is the request of a method; name it by --service and --method")
        options = {"temperature": temperature, "max_tokens": max_tokens, "timeout_s": wait_s}
        _generate(client, agent, _prompt(prompt), options, as_json=output.wants_json(format_))


@contextmanager
def _told_where_to_look(client: Client, agent: str) -> Iterator[None]:
    """Says of an agent's bug, which the platform hides behind a request id, where its traceback is; and of what an
    agent does not serve that it holds conversations, if it does."""
    try:
        yield
    except errors.Internal as error:
        if "request_id" not in error.metadata:
            raise
        raise errors.Internal(
            f"{error.message}; its traceback is in the agent's log: agent logs {agent}",
            reason=error.reason,
            metadata=error.metadata,
        ) from None
    except errors.Unimplemented as error:
        if not _converses(client, agent):
            raise
        raise errors.Unimplemented(
            f"{error.message}; it holds conversations, so talk with it: agent chat {agent}",
            reason=error.reason,
            metadata=error.metadata,
        ) from None


def _converses(client: Client, agent: str) -> bool:
    try:
        found = client.registry.GetAgent(registry_pb2.GetAgentRequest(agent_id=agent), timeout=_LOOK_S).agent
    except errors.AgentError:
        # A worker's name, or nobody who may know: what went wrong is said without it.
        return False
    return _CONVERSATIONS in found.services


def _generate(client: Client, agent: str, prompt: str, options: dict[str, Any], *, as_json: bool) -> None:
    try:
        if as_json:
            output.print_json(output.as_data(client.generate_text(agent, prompt, **options)))
            return
        _stream(client, agent, prompt, options)
    except errors.DeadlineExceeded as error:
        if before := error.metadata.get("before"):
            raise errors.DeadlineExceeded(f"{agent} was not done in time: {before}", reason=error.reason) from None
        raise errors.DeadlineExceeded(
            f"{agent} was not done in time; give it more with --timeout 2m, or ask for less with --max-tokens",
            reason=error.reason,
        ) from None
    except errors.Unimplemented as error:
        raise errors.Unimplemented(
            f"{agent} does not generate text; call what it serves by --service, --method and --data",
            reason=error.reason,
        ) from None


def _stream(client: Client, agent: str, prompt: str, options: dict[str, Any]) -> None:
    ends_line = True
    try:
        for piece in client.stream_text(agent, prompt, **options):
            sys.stdout.write(output.shown(piece.text, sys.stdout))
            sys.stdout.flush()
            ends_line = piece.text.endswith("\n") if piece.text else ends_line
    finally:
        # An error line begins a line of its own, after however much text came.
        if not ends_line:
            print(flush=True)


def _prompt(prompt: str | None) -> str:
    if prompt is None and sys.stdin.isatty():
        raise errors.InvalidArgument('what should it answer? Give a prompt: agent call AGENT "…"')
    text = _stdin() if prompt in (None, "-") else str(prompt)
    if not text.strip():
        raise errors.InvalidArgument('the prompt is empty; give one: agent call AGENT "…"')
    return text


def _stdin() -> str:
    try:
        text = sys.stdin.read()
        # In some locales Python reads any bytes, and leaves those that are no text as surrogates.
        text.encode()
    except UnicodeError:
        raise errors.InvalidArgument("the prompt on stdin is not UTF-8; convert it to UTF-8 first") from None
    return text


def _json(data: str | None) -> dict[str, Any]:
    try:
        value = json.loads(data) if data is not None else {}
    except json.JSONDecodeError as error:
        raise errors.InvalidArgument(f"--data is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise errors.InvalidArgument('--data is not a JSON object, like \'{"name": "Ada"}\'')
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise errors.InvalidArgument("--data holds half of a UTF-16 pair; write whole characters") from None
    return value
