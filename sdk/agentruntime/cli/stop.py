"""`agent stop`."""

from typing import Annotated

import typer

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli import grace as graces
from agentruntime.cli import output, platform

# Beyond the grace period: the time to kill and to clean up.
_BEYOND_GRACE_S = 15.0


def command(
    name: Annotated[str, typer.Argument(help="An agent, or one of its workers.")],
    grace: graces.Grace = None,
    format_: output.Output = None,
) -> None:
    """Stop an agent, or one worker of it.

    Calls in flight finish within the grace period. `agent run` starts it again.
    """
    request = pool_pb2.StopAgentRequest(name=name, grace_period=graces.period(grace))
    grace_s = request.grace_period.ToTimedelta().total_seconds() if grace else graces.DEFAULT_S
    with platform.connect() as client, output.progress(f"stopping {name}"):
        response = client.pool.StopAgent(request, timeout=grace_s + _BEYOND_GRACE_S)
    if output.wants_json(format_):
        output.print_json(output.as_data(response))
    else:
        print(f"stopped {', '.join(response.worker_ids)}" if response.worker_ids else f"{name} had no workers")
