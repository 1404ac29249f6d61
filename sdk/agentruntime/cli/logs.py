"""`agent logs`."""

import math
from typing import Annotated

import typer

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli import output, platform


def command(
    name: Annotated[str, typer.Argument(help="An agent, or one of its workers.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with lines to come, until Ctrl-C.")] = False,
    level: Annotated[str | None, typer.Option(help="At least DEBUG, INFO, WARNING or ERROR.")] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="Only the last so many lines of the past.")] = None,
    format_: output.Output = None,
) -> None:
    """Show what an agent's workers wrote.

    With --output json, one JSON object a line.
    """
    request = pool_pb2.StreamLogsRequest(name=name, follow=follow, level=(level or "").upper(), tail=tail)
    as_json = output.wants_json(format_)
    with platform.connect() as client:
        for entry in client.pool.StreamLogs(request, timeout=math.inf if follow else None):
            if as_json:
                output.print_json_line(output.as_data(entry))
            else:
                # A worker's name says where a line is from; whoever asked for one worker knows.
                print(entry.line if entry.worker_id == name else f"{entry.worker_id}  {entry.line}", flush=True)
