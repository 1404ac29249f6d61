"""Control groups version 2: one unified tree (Documentation/admin-guide/cgroup-v2.rst)."""

import contextlib
from pathlib import Path

from agent_pool.cgroups import base, network
from agent_pool.cgroups.base import CPU_PERIOD_US, Counters, Group, Hierarchy, Limits

_WANTED = ("memory", "cpu", "pids")
_US_PER_S = 1e6
# Moving the others is a race with their forks, which all but a fork bomb loses.
_MOVE_TRIES = 20
_ENABLE_TRIES = 5


class HierarchyV2(Hierarchy):
    """Groups below our own process's group.

    A group with processes in it may not hand controllers to its children ("no internal processes"), so the
    pool, and whatever shares its group, moves to a leaf first.

    Args:
        own: the directory of our own process.
        name: of the directory made below it.
    """

    name = "cgroup v2"

    def __init__(self, own: Path, name: str) -> None:
        self._own = own
        self._directory = own / name
        available = base.read(own / "cgroup.controllers").split()
        self.enforceable = frozenset(_WANTED) & frozenset(available)

    def prepare(self) -> None:
        self._directory.mkdir(exist_ok=True)
        for attempt in range(_ENABLE_TRIES):
            if self._enabled(self._own):
                break
            self._move_to_leaf()
            try:
                self._enable(self._own)
            except OSError:
                if attempt == _ENABLE_TRIES - 1:
                    raise
        self._enable(self._directory)

    def network_unlimited(self) -> str:
        return network.missing()

    def group(self, name: str) -> Group:
        return GroupV2(name, self._directory / name)

    def names(self) -> list[str]:
        if not self._directory.is_dir():
            return []
        return sorted(child.name for child in self._directory.iterdir() if child.is_dir())

    def close(self) -> None:
        if self._directory.is_dir() and not self.names():
            self._directory.rmdir()

    def _leaf(self) -> Path:
        return self._own / f"{self._directory.name}-pool"

    def _move_to_leaf(self) -> None:
        # The root has no such rule, and its kernel threads could not be moved.
        if not (self._own / "cgroup.type").exists():
            return
        leaf = self._leaf()
        leaf.mkdir(exist_ok=True)
        # What is born while the list is read stays behind: once more, until nobody does.
        for _ in range(_MOVE_TRIES):
            pids = base.read(self._own / "cgroup.procs").split()
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    (leaf / "cgroup.procs").write_text(pid)

    def _enabled(self, directory: Path) -> bool:
        return self.enforceable <= set(base.read(directory / "cgroup.subtree_control").split())

    def _enable(self, directory: Path) -> None:
        if not self._enabled(directory):
            wanted = " ".join(f"+{controller}" for controller in sorted(self.enforceable))
            (directory / "cgroup.subtree_control").write_text(wanted)


class GroupV2(Group):
    """One directory."""

    def __init__(self, name: str, directory: Path) -> None:
        super().__init__(name)
        self._directory = directory

    def directories(self) -> list[Path]:
        return [self._directory]

    def limit(self, limits: Limits, *, lift: bool = False) -> None:
        if limits.memory_bytes is not None:
            self._write("memory.max", limits.memory_bytes)
            self._write("memory.swap.max", 0)
        if (quota := limits.cpu_quota_us) is not None:
            self._write("cpu.max", f"{quota} {CPU_PERIOD_US}")
        elif lift:
            self._write("cpu.max", f"max {CPU_PERIOD_US}")
        if limits.pids is not None:
            self._write("pids.max", limits.pids)

    def limit_network(self, bits_per_s: int) -> None:
        network.limit(self._directory, bits_per_s)

    def counters(self) -> Counters:
        cpu = base.read_table(self._directory / "cpu.stat")
        return Counters(
            oom_kills=base.read_table(self._directory / "memory.events").get("oom_kill", 0),
            memory_bytes=base.read_int(self._directory / "memory.current"),
            memory_peak_bytes=base.read_int(self._directory / "memory.peak"),  # since Linux 5.19
            pids=base.read_int(self._directory / "pids.current"),
            pids_refused=base.read_table(self._directory / "pids.events").get("max", 0),
            cpu_s=_cpu_s(cpu),
            throttled_periods=cpu.get("nr_throttled", 0),
            throttled_s=cpu.get("throttled_usec", 0) / _US_PER_S,
        )

    def cpu_s(self) -> float:
        return _cpu_s(base.read_table(self._directory / "cpu.stat"))

    def kill(self) -> None:
        switch = self._directory / "cgroup.kill"  # since Linux 5.14
        if switch.exists():
            with contextlib.suppress(OSError):  # the group may be on its way out
                switch.write_text("1")
            return
        with contextlib.suppress(OSError):
            self._write("pids.max", 0)
        base.kill_all(self.pids())

    def _write(self, name: str, value: int | str) -> None:
        path = self._directory / name
        if path.exists():  # a controller, or swap accounting, may be missing
            path.write_text(str(value))


def _cpu_s(stat: dict[str, int]) -> float:
    return stat.get("usage_usec", 0) / _US_PER_S
