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
    worker_id, agent = process.launch.worker_id, process.launch.revision.agent
    failure = process.reports.failure
    clean = logs.redactor(agent).text
    trace = clean(failure.get("traceback", ""))
    if status != 0 and not trace:
        # Before the pool adds to it.
        trace = logs.last_words(agent, worker_id, process.log_start).removeprefix("\n")
    if process.reports.listening and status != 0:
        # Of one that never served, whoever started it hears.
        with contextlib.suppress(OSError):  # a full disk must not hide how the worker ended
            logs.note(agent, worker_id, "error", "worker ended", reason=reason)
    code = None if status is None else os.waitstatus_to_exitcode(status)
    return Exit(reason, clean(failure.get("error", "")), trace, code)


def failure(process: WorkerProcess, end: Exit) -> errors.AgentFailed:
    """Of a worker that ended before it served."""
    worker_id, words = process.launch.worker_id, f"\n{end.traceback}" if end.traceback else ""
    if end.error:
        return errors.AgentFailed(f"worker {worker_id} failed: {end.error} ({end.reason}){words}")
    return errors.AgentFailed(f"worker {worker_id} ended before it was ready: {end.reason}{words}")
