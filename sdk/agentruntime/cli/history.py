"""`agent history`."""

from typing import Annotated

import typer

from agentruntime import units
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli import output, platform

_COLUMNS = ["REVISION", "IMAGE", "CREATED (UTC)", "CAUSE", "CPU", "MEMORY", "READY", "NOTE"]


def command(
    agent: Annotated[str, typer.Argument(help="An agent.")],
    format_: output.Output = None,
) -> None:
    """List an agent's revisions, newest first.

    `agent rollback AGENT --to N` goes back to one of them.
    """
    with platform.connect() as client:
        revisions = client.pool.ListRevisions(pool_pb2.ListRevisionsRequest(agent=agent)).revisions
    if output.wants_json(format_):
        output.print_json([output.as_data(revision) for revision in revisions])
    else:
        output.print_table(_COLUMNS, [_row(revision) for revision in revisions])


def _row(revision: pool_pb2.Revision) -> list[str]:
    notes = ["current"] if revision.current else []
    return [
        str(revision.number),
        revision.image,
        revision.created_at.ToDatetime().strftime("%Y-%m-%d %H:%M:%S"),
        revision.cause,
        units.format_cpu(revision.resources.cpu_millis),
        units.format_size(revision.resources.memory_bytes),
        str(revision.ready_workers),
        "; ".join(notes + ([revision.failure] if revision.failure else [])),
    ]
