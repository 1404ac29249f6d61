"""`agent secrets`: what agents need and nobody is to read. A value is never an argument: others see command lines."""

import getpass
import sys
from pathlib import Path
from typing import Annotated

import typer

from agentruntime import errors, secrets
from agentruntime._proto.uapi.v1 import secret_service_pb2, secret_service_pb2_grpc
from agentruntime.cli import failure, output, platform
from agentruntime.client.sync import Client

_Name = Annotated[
    str, typer.Argument(metavar="NAME", help="The file's name below /run/secrets; AGENT/NAME is one agent's own.")
]


def set_(
    name: _Name,
    agents: Annotated[
        str | None,
        typer.Option(
            metavar="AGENT[,AGENT]",
            help="May have it, if their agent.yaml names it; '*' is all. By default as before.",
        ),
    ] = None,
    from_file: Annotated[
        Path | None, typer.Option("--from-file", metavar="FILE", help="Holds the value, taken byte for byte.")
    ] = None,
    keep_value: Annotated[bool, typer.Option("--keep-value", help="Change the agents alone.")] = False,
    format_: output.Output = None,
) -> None:
    """Set a secret, or give it another value.

    The value is asked for without showing it, or read from a pipe (but for a newline at its end), or from a file.
    Workers that run keep what they have; `agent restart` gives them what was set.
    """
    if "=" in name:
        raise errors.InvalidArgument(failure.VALUE_AS_ARGUMENT)
    secrets.split(name)
    request = secret_service_pb2.SetSecretRequest(
        name=name, agents=[agent.strip() for agent in agents.split(",")] if agents else []
    )
    if keep_value and from_file:
        raise errors.InvalidArgument("--keep-value and --from-file exclude each other")
    if not keep_value:
        request.value = _value(name, from_file)
    with platform.connect() as client:
        secret = _stub(client).SetSecret(request).secret
    if output.wants_json(format_):
        output.print_json(output.as_data(secret))
    else:
        print(f"set {secret.name} for {', '.join(secret.agents)}")
    if not keep_value and len(request.value.strip()) < secrets.LEAST_REDACTED_BYTES:
        output.note(
            f"note: it is shorter than {secrets.LEAST_REDACTED_BYTES} bytes, and so not left out of what agents print"
        )
    for agent in secret.outdated_agents:
        output.note(f"note: workers of {agent} have another value; `agent restart {agent}` gives them this one")


def list_(format_: output.Output = None) -> None:
    """List secrets, without their values."""
    with platform.connect() as client:
        found = _stub(client).ListSecrets(secret_service_pb2.ListSecretsRequest()).secrets
    if output.wants_json(format_):
        output.print_json([output.as_data(secret) for secret in found])
        return
    rows = [
        [
            secret.name,
            ", ".join(secret.agents),
            secret.changed_at.ToDatetime().strftime("%Y-%m-%d %H:%M"),
            ", ".join(secret.outdated_agents) or "-",
        ]
        for secret in found
    ]
    output.print_table(["SECRET", "AGENTS", "CHANGED (UTC)", "TO BE RESTARTED"], rows)


def delete(name: _Name, format_: output.Output = None) -> None:
    """Delete a secret; workers that run keep theirs.

    An agent whose agent.yaml names it does not start again without it.
    """
    with platform.connect() as client:
        _stub(client).DeleteSecret(secret_service_pb2.DeleteSecretRequest(name=name))
    if output.wants_json(format_):
        output.print_json({"deleted": name})
    else:
        print(f"deleted {name}")


def _value(name: str, file: Path | None) -> bytes:
    if file is not None:
        try:
            value = file.read_bytes()
        except OSError as error:
            raise errors.InvalidArgument(f"{file} cannot be read ({error.strerror})") from None
    elif sys.stdin.isatty():
        value = getpass.getpass(f"Value of {name} (not shown): ", sys.stderr).encode()
    else:
        value = sys.stdin.buffer.read(secrets.LONGEST_BYTES + 2)
        value = value.removesuffix(b"\n").removesuffix(b"\r")
    if not value:
        raise errors.InvalidArgument(f"the value of '{name}' is empty; write it, or pipe it in, or name --from-file")
    return value


def _stub(client: Client) -> secret_service_pb2_grpc.SecretServiceStub:
    return client.stub(secret_service_pb2_grpc.SecretServiceStub, agent="")


COMMANDS = {"set": set_, "list": list_, "delete": delete}
