"""`agent whoami`."""

from typing import Annotated

import typer

from agentruntime._proto.uapi.v1 import access_pb2, access_pb2_grpc
from agentruntime.cli import connection, output, platform
from agentruntime.cli.keys import ROLE_NAMES


def command(
    api_key: Annotated[
        str | None, typer.Option("--api-key", metavar="KEY", help="Of this one, in place of UAPI_AUTH_TOKEN.")
    ] = None,
    format_: output.Output = None,
) -> None:
    """Show whom the platform takes you for, and what you may do."""
    with platform.connect(connection.config(api_key)) as client:
        stub = client.stub(access_pb2_grpc.AccessServiceStub, agent="")
        caller = stub.GetCaller(access_pb2.GetCallerRequest())
    if output.wants_json(format_):
        output.print_json(output.as_data(caller))
        return
    print(caller.principal)
    for grant in caller.grants:
        agents = "all agents" if list(grant.agents) == ["*"] else ", ".join(grant.agents)
        print(f"  {ROLE_NAMES.get(grant.role, '?')}: {agents}")
    if not caller.grants:
        print("  may call nothing")
