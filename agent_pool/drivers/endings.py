"""How a worker ended, for whoever waits for it and for its log; the same of a process and of a container."""

import contextlib
import os

from agentruntime import errors

from agent_pool.cgroups.base import Counters
from agent_pool.drivers import exits
from agent_pool.drivers.base import Exit
from agent_pool.drivers.worker_process import WorkerProcess
from agent_pool.logs import LogStore


def told(logs: LogStore, process: WorkerProcess, status: int | None, counters: Counters) -> Exit:
    """The end of a worker that has ended; its log says so, too.

    Args:
        logs: of the pool.
        process: the worker's.
        status: as of waitpid(2), None where nobody saw it.
        counters: of its group, at the end.
    """
    process.reports.hear_out()
    reason = exits.explain(status, counters, process.launch.revision.limits)
    if process.reports.listening and status != 0:
        # Of one that never served, whoever started it hears.
        worker_id, agent = process.launch.worker_id, process.launch.revision.agent
        with contextlib.suppress(OSError):  # a full disk must not hide how the worker ended
            logs.note(agent, worker_id, "error", "worker ended", reason=reason)
    failure = process.reports.failure
    clean = logs.redactor(process.launch.revision.agent).text
    code = None if status is None else os.waitstatus_to_exitcode(status)
    return Exit(reason, clean(failure.get("error", "")), clean(failure.get("traceback", "")), code)


def failure(logs: LogStore, process: WorkerProcess, end: Exit) -> errors.AgentFailed:
    """Of a worker that ended before it served."""
    worker_id, agent = process.launch.worker_id, process.launch.revision.agent
    if end.traceback:
        return errors.AgentFailed(f"worker {worker_id} failed: {end.error} ({end.reason})\n{end.traceback}")
    words = logs.last_words(agent, worker_id, process.log_start)
    return errors.AgentFailed(f"worker {worker_id} ended before it was ready: {end.reason}{words}")
