"""`agent keys`: API keys, for callers that are not on this machine."""

import math
from typing import Annotated, Literal

import typer
from google.protobuf import duration_pb2
from google.protobuf.json_format import MessageToDict

from agentruntime import errors
from agentruntime._proto.uapi.v1 import access_pb2, access_pb2_grpc
from agentruntime.cli import output, platform
from agentruntime.client.sync import Client
from agentruntime.units import parse_calls, parse_duration

ROLES = {
    "call": access_pb2.ROLE_CALL,
    "operate": access_pb2.ROLE_OPERATE,
    "administer": access_pb2.ROLE_ADMINISTER,
}
ROLE_NAMES: dict[int, str] = {role: name for name, role in ROLES.items()}


def create(
    name: Annotated[str, typer.Option(metavar="NAME", help="What it is called in lists, logs and the audit log.")],
    *,
    agents: Annotated[str, typer.Option(metavar="AGENT[,AGENT]", help="The agents that it is for; '*' is all.")],
    role: Annotated[
        Literal["call", "operate", "administer"],
        typer.Option(help="call them; or run, stop and scale them, too; or, for '*', do everything."),
    ] = "call",
    expires: Annotated[
        str | None, typer.Option(metavar="DURATION", help="After which it is refused, like 30d; by default never.")
    ] = None,
    rate: Annotated[str | None, typer.Option(metavar="CALLS/s", help="The most calls, like 10/s or 600/m.")] = None,
    concurrency: Annotated[int, typer.Option(min=0, help="The most calls in flight; 0 is no limit of its own.")] = 0,
    format_: output.Output = None,
) -> None:
    """Make an API key. It is shown this once; callers bring it in UAPI_AUTH_TOKEN."""
    request = access_pb2.CreateKeyRequest(
        name=name,
        role=ROLES[role],
        agents=[agent.strip() for agent in agents.split(",") if agent.strip()],
        rate_per_second=parse_calls(rate) if rate else 0.0,
        max_concurrency=concurrency,
    )
    if expires is not None:
        request.expires_in.CopyFrom(duration(_lifetime_s(expires)))
    with platform.connect() as client:
        answer = _stub(client).CreateKey(request)
    if output.wants_json(format_):
        output.print_json({**output.as_data(answer.key), "secret": answer.secret})
        return
    print(answer.secret)
    output.note(f"{_sentence(answer.key)}; it is not shown again")


def list_(format_: output.Output = None) -> None:
    """List the API keys, without the keys themselves."""
    with platform.connect() as client:
        found = _stub(client).ListKeys(access_pb2.ListKeysRequest()).keys
    if output.wants_json(format_):
        output.print_json([output.as_data(key) for key in found])
        return
    rows = [
        [
            key.name,
            key.key_id,
            ROLE_NAMES.get(key.role, "-"),
            ",".join(key.agents),
            time(key, "created_at"),
            time(key, "expires_at"),
            _limits(key),
        ]
        for key in found
    ]
    output.print_table(["NAME", "ID", "ROLE", "AGENTS", "CREATED", "EXPIRES", "LIMITS"], rows)


def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its name or its id.")], format_: output.Output = None
) -> None:
    """End an API key: from then on it is refused. Streams that it opened go on.

    Its conversations stay, for whoever gets a new key of that name.
    """
    with platform.connect() as client:
        revoked = _stub(client).RevokeKey(access_pb2.RevokeKeyRequest(key=key)).key
    if output.wants_json(format_):
        output.print_json(output.as_data(revoked))
    else:
        print(f"revoked {revoked.name} ({revoked.key_id})")


def duration(seconds: float) -> duration_pb2.Duration:
    """The message.

    Raises:
        InvalidArgument: it is longer than a message can hold.
    """
    # https://protobuf.dev/reference/protobuf/google.protobuf/#duration
    if not seconds < 315_576_000_000:
        raise errors.InvalidArgument("a key that outlives 10,000 years needs no --expires; leave it out")
    made = duration_pb2.Duration()
    made.FromMilliseconds(math.ceil(seconds * 1000))
    return made


def _lifetime_s(text: str) -> float:
    """Seconds until it expires, with a unit: who writes 30 does not mean half a minute.

    Raises:
        InvalidUnit: it is no duration, or has no unit.
    """
    seconds = parse_duration(text)
    if not text.strip()[-1].isalpha():
        raise errors.InvalidUnit(
            f"--expires {text} has no unit; write {text.strip()}d for days, or a number with h, m or s"
        )
    return seconds


def _sentence(key: access_pb2.AccessKey) -> str:
    agents = "all agents" if list(key.agents) == ["*"] else ", ".join(key.agents)
    until = time(key, "expires_at")
    end = "does not expire" if until == "-" else f"expires at {until}"
    return f"key '{key.name}' ({key.key_id}) has the role {ROLE_NAMES.get(key.role, '?')} for {agents}, and {end}"


def time(message: access_pb2.AccessKey | access_pb2.CertificateGrant, field: str) -> str:
    """As a table has it; "-" where there is none."""
    text = str(MessageToDict(message, preserving_proto_field_name=True).get(field, ""))
    return text[:19] + "Z" if text else "-"


def _limits(key: access_pb2.AccessKey) -> str:
    said = [f"{key.rate_per_second:g}/s"] if key.rate_per_second else []
    said += [f"{key.max_concurrency} in flight"] if key.max_concurrency else []
    return ", ".join(said) or "-"


def _stub(client: Client) -> access_pb2_grpc.AccessServiceStub:
    return client.stub(access_pb2_grpc.AccessServiceStub, agent="")


COMMANDS = {"create": create, "list": list_, "revoke": revoke}
