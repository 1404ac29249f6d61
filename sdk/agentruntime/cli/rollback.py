"""`agent rollback`."""

from typing import Annotated

import typer

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli import deployment, output, platform
from agentruntime.cli import grace as graces


def command(
    agent: Annotated[str, typer.Argument(help="An agent.")],
    to: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="A revision of `agent history`; the one before, by default."),
    ] = None,
    grace: graces.Grace = None,
    format_: output.Output = None,
) -> None:
    """Go back to an earlier image and settings of an agent.

    Worker by worker, as an update. Ends a canary.
    """
    request = pool_pb2.RollbackAgentRequest(agent=agent, revision=to, grace_period=graces.period(grace))
    as_json = output.wants_json(format_)
    goes_on = f"the rollback goes on; `agent history {agent}` says how it ends"
    with platform.connect() as client:
        after = deployment.followed(
            client,
            agent,
            f"rolling {agent} back",
            lambda: client.pool.RollbackAgent(request, timeout=deployment.TIMEOUT_S).deployment,
            goes_on=goes_on,
            quiet=as_json,
        )
    deployment.show(after, as_json=as_json)
