"""Processes known by pid and start time: a pid alone may have gone to another."""

import os
import time
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Zombie and dead; proc_pid_stat(5).
_ENDED = frozenset("ZX")


def start_time(pid: int) -> float:
    """When a process started, in seconds since the machine did; 0 if it has ended.

    Not since the epoch, because that would change whenever somebody sets the clock.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    # The command's name stands in parentheses and may hold anything. Field 3 is the state, 22 the start.
    fields = stat.rpartition(")")[2].split()
    return 0.0 if fields[0] in _ENDED else int(fields[19]) / _TICKS_PER_S


def alive(pid: int, started: float) -> bool:
    """Whether the process of that pid whose `start_time` was `started` still runs."""
    return started > 0.0 and abs(start_time(pid) - started) < 0.5 / _TICKS_PER_S


def age_s(started: float) -> float:
    """Seconds since a `start_time`."""
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
