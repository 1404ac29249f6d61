"""`agent stop`."""

from typing import Annotated

import typer
from google.protobuf import duration_pb2

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli import output, platform
from agentruntime.errors import InvalidArgument
from agentruntime.units import parse_duration

_DEFAULT_GRACE_S = 30.0


def command(
    name: Annotated[str, typer.Argument(help="An agent, or one of its workers.")],
    grace: Annotated[str | None, typer.Option(help="Time for calls in flight, like 10s; 30s by default.")] = None,
    format_: output.Output = None,
) -> None:
    """Stop an agent, or one worker of it.

    Calls in flight finish within the grace period. `agent run` starts it again.
    """
    request = pool_pb2.StopAgentRequest(name=name)
    grace_s = _DEFAULT_GRACE_S
    if grace is not None:
        grace_s = parse_duration(grace)
        if grace_s > 3600:
            raise InvalidArgument(f"--grace: {grace} is too long; an hour is the most")
        period = duration_pb2.Duration()
        period.FromMilliseconds(round(grace_s * 1000))
        request.grace_period.CopyFrom(period)
    with platform.connect() as client, output.progress(f"stopping {name}"):
        # Beyond the grace period: the time to kill and to clean up.
        response = client.pool.StopAgent(request, timeout=grace_s + 15.0)
    if output.wants_json(format_):
        output.print_json(output.as_data(response))
    else:
        print(f"stopped {', '.join(response.worker_ids)}" if response.worker_ids else f"{name} had no workers")
