"""`agent restart`."""

from typing import Annotated

import typer

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli import deployment, output, platform
from agentruntime.cli import grace as graces


def command(
    name: Annotated[str, typer.Argument(help="An agent, or one of its workers.")],
    grace: graces.Grace = None,
    format_: output.Output = None,
) -> None:
    """Replace an agent's workers, or one of them, by new ones.

    Each new worker is ready before an old one drains, so no call is lost.
    """
    request = pool_pb2.RestartAgentRequest(name=name, grace_period=graces.period(grace))
    as_json = output.wants_json(format_)
    goes_on = f"the restart goes on; `agent ps` shows it, `agent stop {name}` ends it"
    with platform.connect() as client:
        response = deployment.followed(
            client,
            name,
            f"restarting {name}",
            lambda: client.pool.RestartAgent(request, timeout=deployment.TIMEOUT_S),
            goes_on=goes_on,
            quiet=as_json,
        )
    if as_json:
        output.print_json(output.as_data(response))
    elif response.worker_ids:
        print(f"restarted {name}: {', '.join(response.worker_ids)}")
    else:
        print(f"{name} had no workers to restart")
