"""Why a process ended, in a few words: a pure function of what is known of its end."""

import os

from agentruntime import units

from agent_pool.cgroups.base import Counters, Limits

_SIGKILL = 9


def explain(status: int | None, counters: Counters, limits: Limits) -> str:
    """Of a wait status (waitpid(2)) or None where nobody saw it, and the counters of its group at the end."""
    killed = status is not None and os.WIFSIGNALED(status)
    cap = f" at {units.format_size(limits.memory_bytes)}" if limits.memory_bytes else ""
    if counters.oom_kills and (status is None or (killed and os.WTERMSIG(status) == _SIGKILL)):
        return f"OOM-killed{cap}"
    if status is None:
        reason = "ended, and how is not known"
    elif killed:
        reason = f"killed by signal {os.WTERMSIG(status)}"
    else:
        reason = f"exit status {os.waitstatus_to_exitcode(status)}"
    if counters.oom_kills:
        reason += f", after a process of it was OOM-killed{cap}"
    if counters.pids_refused:
        reason += f", after a fork beyond {limits.pids} processes and threads was refused"
    return reason
