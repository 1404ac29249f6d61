"""`agent ps`."""

import time
from typing import Annotated

import typer

from agentruntime import units
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli import output, platform

_COLUMNS = ["WORKER", "STATE", "REVISION", "PID", "RESTARTS", "CPU", "MEMORY", "UP", "REASON"]


def command(
    agent: Annotated[str | None, typer.Option(help="Only this agent's.")] = None,
    format_: output.Output = None,
) -> None:
    """List workers."""
    with platform.connect() as client:
        workers = client.pool.ListWorkers(pool_pb2.ListWorkersRequest(agent=agent or "")).workers
    if output.wants_json(format_):
        output.print_json([output.as_data(worker) for worker in workers])
    else:
        output.print_table(_COLUMNS, [_row(worker, time.time()) for worker in workers])


def _row(worker: pool_pb2.Worker, now: float) -> list[str]:
    started = worker.started_at.ToNanoseconds() / 1e9
    running = worker.pid > 0
    return [
        worker.worker_id,
        pool_pb2.WorkerState.Name(worker.state).removeprefix("WORKER_STATE_"),
        str(worker.revision),
        str(worker.pid or "-"),
        str(worker.restarts),
        f"{worker.usage.cpu_percent:.0f}%" if running else "-",
        units.format_size(worker.usage.memory_bytes) if running else "-",
        units.format_duration(now - started) if running and started else "-",
        "; ".join(text for text in (worker.reason, worker.start_note) if text),
    ]
