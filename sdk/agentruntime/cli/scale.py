"""`agent scale`."""

from typing import Annotated

import typer

from agentruntime import errors, wire
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli import deployment, output, platform, settings
from agentruntime.config import RuntimeConfig


@settings.taken("scale")
def command(
    agent: Annotated[str, typer.Argument(help="An agent.")],
    *,
    flags: settings.Given,
    format_: output.Output = None,
) -> None:
    """Set how many workers an agent has, or what each of them gets.

    With --auto-scale the load decides, between --min and --max. What is not given stays as it is.
    """
    request = scale_request(agent, flags.config())
    as_json = output.wants_json(format_)
    goes_on = f"the scaling goes on; `agent ps --agent {agent}` shows it"
    with platform.connect() as client:
        after = deployment.followed(
            client,
            agent,
            f"scaling {agent}",
            lambda: client.pool.ScaleAgent(request, timeout=deployment.TIMEOUT_S).deployment,
            goes_on=goes_on,
            quiet=as_json,
        )
    deployment.show(after, as_json=as_json)


def scale_request(agent: str, config: RuntimeConfig) -> pool_pb2.ScaleAgentRequest:
    """The request that sends what was set, and nothing else.

    Raises:
        InvalidArgument: nothing was set.
    """
    wanted = wire.agent_settings(config)
    request = pool_pb2.ScaleAgentRequest(
        agent=agent, replicas=config.replicas, allow_unenforced=config.allow_unenforced or False
    )
    if wanted.HasField("resources"):
        request.resources.CopyFrom(wanted.resources)
    if wanted.HasField("scaling"):
        request.scaling.CopyFrom(wanted.scaling)
    if not (request.HasField("replicas") or request.HasField("resources") or request.HasField("scaling")):
        raise errors.InvalidArgument("scale it how? Give --replicas 5, --memory 1GB, --cpu 2 or --auto-scale")
    return request
