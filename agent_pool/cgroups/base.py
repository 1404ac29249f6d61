"""What the pool wants of control groups, whichever version the kernel offers."""

import contextlib
import io
import os
import signal
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

# Kernel default of the CPU controller (Documentation/scheduler/sched-bwc.rst).
CPU_PERIOD_US = 100_000
_REMOVE_TRIES = 100
_REMOVE_PAUSE_S = 0.005


@dataclass(frozen=True)
class Limits:
    """Caps of one group; None is no cap."""

    memory_bytes: int | None = None
    cpu_millis: int | None = None
    pids: int | None = None
    # In each direction, in bits per second; set when the group is made, and not moved.
    network_bps: int | None = None

    @property
    def cpu_quota_us(self) -> int | None:
        """CPU time per period."""
        return None if self.cpu_millis is None else self.cpu_millis * CPU_PERIOD_US // 1000


@dataclass(frozen=True)
class Counters:
    """What the kernel counted for a group so far; 0 where its controller is missing."""

    oom_kills: int = 0
    memory_bytes: int = 0
    memory_peak_bytes: int = 0
    pids: int = 0
    # How often a fork was refused.
    pids_refused: int = 0
    cpu_s: float = 0.0
    throttled_periods: int = 0
    throttled_s: float = 0.0


class Group(ABC):
    """One group. It may be gone already; reading then gives zeros, and removing does nothing."""

    # The file by which a process with a single thread joins.
    entrance = "cgroup.procs"

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def directories(self) -> list[Path]:
        """Of the group, one per hierarchy."""

    @abstractmethod
    def limit(self, limits: Limits, *, lift: bool = False) -> None:
        """Sets the caps that can be enforced. Those that are None are left alone, or lifted.

        Raises:
            OSError: the kernel refuses one, for example a memory cap below what is in use.
        """

    @abstractmethod
    def counters(self) -> Counters:
        """Does not block."""

    @abstractmethod
    def cpu_s(self) -> float:
        """CPU time used, in seconds; the one counter that is read often."""

    @abstractmethod
    def limit_network(self, bits_per_s: int) -> None:
        """Limits a group that nothing is in yet.

        Raises:
            OSError: the kernel refuses.
        """

    @abstractmethod
    def kill(self) -> None:
        """Sends SIGKILL to everything in the group, and does not wait for it to die."""

    def open_procs(self) -> list[int]:
        """Descriptors for joining, by writing "0" to each; the writer has one thread. The caller closes them."""
        opened: list[int] = []
        try:
            for directory in self.directories():
                entrance = self.entrance if (directory / self.entrance).exists() else "cgroup.procs"
                opened.append(os.open(directory / entrance, os.O_WRONLY | os.O_CLOEXEC))
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise
        return opened

    def pids(self) -> list[int]:
        """Of the processes in the group."""
        found: set[int] = set()
        for directory in self.directories():
            found.update(int(pid) for pid in read(directory / "cgroup.procs").split())
        return sorted(found - {0})

    def remove(self) -> None:
        """Kills what is left in the group and removes it. Blocks for up to half a second while the dead leave.

        Raises:
            OSError: the kernel would not let go of it.
        """
        for attempt in range(_REMOVE_TRIES):
            if self._rmdir(last=attempt == _REMOVE_TRIES - 1):
                return
            self.kill()
            time.sleep(_REMOVE_PAUSE_S)

    def _rmdir(self, *, last: bool) -> bool:
        gone = True
        for directory in self.directories():
            try:
                directory.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                if last:
                    raise
                gone = False
        return gone


class Hierarchy(ABC):
    """Where the pool keeps its groups: below the pool's own, in one directory per runtime directory."""

    # "cgroup v1"
    name: str
    # Those of "memory", "cpu" and "pids" that can be capped.
    enforceable: frozenset[str]

    @abstractmethod
    def network_unlimited(self) -> str:
        """Why the network of a group cannot be limited, or ""."""

    @abstractmethod
    def prepare(self) -> None:
        """Makes the directory that holds the groups.

        Raises:
            OSError: the kernel does not let us.
        """

    @abstractmethod
    def group(self, name: str) -> Group:
        """The group of that name, whether it exists or not."""

    @abstractmethod
    def names(self) -> list[str]:
        """Of the groups that exist."""

    @abstractmethod
    def close(self) -> None:
        """Removes the directory, if no group is left in it."""

    def create(self, name: str, limits: Limits) -> Group:
        """A new group with these caps."""
        group = self.group(name)
        try:
            for directory in group.directories():
                directory.mkdir()
            group.limit(limits)
            if limits.network_bps and not self.network_unlimited():
                group.limit_network(limits.network_bps)
        except OSError:
            group.remove()
            raise
        return group


def read(path: Path) -> str:
    """A control file's text; "" if it, or its group, is gone."""
    try:
        # Read often: without buffers and decoders it takes half the time.
        with io.FileIO(path) as file:
            return file.readall().decode()
    except OSError:
        return ""


def read_int(path: Path) -> int:
    """A control file's number; 0 if there is none."""
    text = read(path).strip()
    return int(text) if text.isdigit() else 0


def read_table(path: Path) -> dict[str, int]:
    """A control file of "name number" lines."""
    rows = (line.split() for line in read(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def kill_all(pids: list[int]) -> None:
    """Sends SIGKILL to each that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
