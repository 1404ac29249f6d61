"""What workers use: the kernel's counters where there are groups, psutil where not; of any driver's workers."""

import contextlib
import os
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

from agent_pool import gpus as gpus_
from agent_pool.cgroups.base import Counters, Group, read
from agent_pool.drivers.base import Stats

# Rates are over at least, and about, this long.
_WINDOW_S = 5.0
_LOOPBACK = "lo"
# Of a line of /proc/<pid>/net/dev, after the interface's name: received comes first, sent after seven other columns
# (Documentation/filesystems/proc.rst).
_RECEIVED, _SENT = 0, 8


class Traffic(NamedTuple):
    """Through the interfaces of a network namespace but loopback, in bytes."""

    received_bytes: int
    sent_bytes: int


def stats(pid: int, group: Group | None, gpus: tuple[int, ...] = (), *, share: bool = False) -> Stats:
    """Of a worker. Blocks for a fraction of a millisecond.

    Args:
        pid: of its first process.
        group: all its processes are in; None where there is none: then the first process is measured alone.
        gpus: those leased to it.
        share: whether to read its share of memory too, which takes some milliseconds for each process.
    """
    counters = group.counters() if group else Counters()
    cpu_s, memory_bytes, pids = counters.cpu_s, counters.memory_bytes, counters.pids
    if share or not (cpu_s and memory_bytes and pids):
        members = (group.pids() if group else []) or [pid]
        measured = [] if cpu_s and memory_bytes else [_measure(member) for member in members]
        cpu_s = cpu_s or sum(cpu for cpu, _ in measured)
        memory_bytes = memory_bytes or sum(rss for _, rss in measured)
        pids = pids or len(members)
    traffic = network(pid)
    return Stats(
        cpu_s=cpu_s,
        memory_bytes=memory_bytes,
        memory_peak_bytes=max(counters.memory_peak_bytes, memory_bytes),
        memory_pss_bytes=sum(pss(member) for member in members) if share else 0,
        pids=pids,
        throttled_periods=counters.throttled_periods,
        throttled_s=counters.throttled_s,
        network_received_bytes=traffic.received_bytes if traffic else None,
        network_sent_bytes=traffic.sent_bytes if traffic else None,
        gpus=gpus_.usage(gpus),
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


def network(pid: int, processes: Path = Path("/proc")) -> Traffic | None:
    """What went through a process's network; None where that is not its own but ours, or cannot be told."""
    own, ours = (_network_namespace(f"{processes}/{name}") for name in (pid, "self"))
    table = read(processes / str(pid) / "net/dev")
    if own is None or own == ours or not table:
        return None
    received = sent = 0
    # Two lines of headings; a name may stand right before its first figure: "eth0:1234".
    for line in table.splitlines()[2:]:
        name, _, figures = line.partition(":")
        if name.strip() != _LOOPBACK:
            columns = figures.split()
            received += int(columns[_RECEIVED])
            sent += int(columns[_SENT])
    return Traffic(received, sent)


def _network_namespace(process: str) -> int | None:
    with contextlib.suppress(OSError):
        return os.stat(f"{process}/ns/net").st_ino  # noqa: PTH116 — because Path takes as long again, and this is often
    return None


def _measure(pid: int) -> tuple[float, int]:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        times = process.cpu_times()
        return times.user + times.system, process.memory_info().rss
    return 0.0, 0


@dataclass(frozen=True)
class Rates:
    """Over the last few seconds."""

    # Of one core.
    cpu_percent: float = 0.0
    # In bytes per second; None where the worker has no network of its own.
    received: float | None = None
    sent: float | None = None


class Meter:
    """One worker's rates, from counters that are read every now and then. Threads may share it.

    Args:
        started_s: when the counters began at nothing; None if they did so before anybody looked: then nothing is said
            before the second time.
    """

    def __init__(self, started_s: float | None) -> None:
        self._samples = deque([] if started_s is None else [(started_s, 0.0, Traffic(0, 0))])
        self._lock = threading.Lock()

    def rates(self, now_s: float, cpu_s: float, traffic: Traffic | None) -> Rates:
        """Takes in the counters as they are now, and says how they grew since about `_WINDOW_S` ago."""
        with self._lock:
            self._samples.append((now_s, cpu_s, traffic or Traffic(0, 0)))
            while len(self._samples) > 2 and now_s - self._samples[1][0] >= _WINDOW_S:
                self._samples.popleft()
            then_s, before_s, before = self._samples[0]
        passed_s = now_s - then_s
        if passed_s <= 0:
            return Rates()
        percent = 100 * max(0.0, cpu_s - before_s) / passed_s
        if traffic is None:
            return Rates(percent)
        received, sent = (max(0, each - was) / passed_s for each, was in zip(traffic, before, strict=True))
        return Rates(percent, received, sent)
