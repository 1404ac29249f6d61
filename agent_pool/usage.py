"""What workers use: the kernel's counters where there are groups, psutil where not."""

import contextlib
from collections import deque
from pathlib import Path

import psutil

from agent_pool.cgroups.base import Counters
from agent_pool.drivers.base import Stats

# CPU percent is over at least, and about, this long.
_WINDOW_S = 5.0


def stats(counters: Counters, pids: list[int]) -> Stats:
    """Of a worker, from its group's counters and its processes. Blocks for about a millisecond."""
    cpu_s, memory_bytes = counters.cpu_s, counters.memory_bytes
    if not cpu_s or not memory_bytes:
        measured = [_measure(pid) for pid in pids]
        cpu_s = cpu_s or sum(cpu for cpu, _ in measured)
        memory_bytes = memory_bytes or sum(rss for _, rss in measured)
    return Stats(
        cpu_s=cpu_s,
        memory_bytes=memory_bytes,
        memory_peak_bytes=max(counters.memory_peak_bytes, memory_bytes),
        memory_pss_bytes=sum(pss(pid) for pid in pids),
        pids=counters.pids or len(pids),
        throttled_periods=counters.throttled_periods,
        throttled_s=counters.throttled_s,
    )


def cpu_s(pid: int) -> float:
    """CPU time that one process has used, in seconds; 0 if it is gone."""
    return _measure(pid)[0]


def pss(pid: int) -> int:
    """Proportional set size in bytes (proc(5), smaps_rollup); 0 if it cannot be read."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _measure(pid: int) -> tuple[float, int]:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        times = process.cpu_times()
        return times.user + times.system, process.memory_info().rss
    return 0.0, 0


class CpuMeter:
    """CPU percent of one core over the last few seconds."""

    def __init__(self, started_s: float) -> None:
        self._samples = deque([(started_s, 0.0)])

    def percent(self, now_s: float, cpu_s: float) -> float:
        """Takes in the CPU time used so far, and says how busy that was since about `_WINDOW_S` ago."""
        self._samples.append((now_s, cpu_s))
        while len(self._samples) > 2 and now_s - self._samples[1][0] >= _WINDOW_S:
            self._samples.popleft()
        then_s, before_s = self._samples[0]
        return 100 * max(0.0, cpu_s - before_s) / (now_s - then_s) if now_s > then_s else 0.0
