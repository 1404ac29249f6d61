"""Control groups version 1: a mount per controller (Documentation/admin-guide/cgroup-v1)."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from agent_pool.cgroups import base, network
from agent_pool.cgroups.base import CPU_PERIOD_US, Counters, Group, Hierarchy, Limits

_NS_PER_S = 1e9


class HierarchyV1(Hierarchy):
    """Groups in the memory, cpu, cpuacct and pids mounts, those that exist and may be written.

    Args:
        parents: the directory of our own process per controller.
        name: of the directory made below each.
        unified: the directory of our own process in a version 2 hierarchy beside them, if there is one that may be
            written: the groups whose network is limited are there, too.
    """

    name = "cgroup v1"

    def __init__(self, parents: Mapping[str, Path], name: str, unified: Path | None = None) -> None:
        self._unified = unified / name if unified else None
        # cpu and cpuacct are often one mount.
        self._directories = {controller: parent / name for controller, parent in parents.items()}
        self.enforceable = frozenset(self._directories) & {"memory", "cpu", "pids"}

    def prepare(self) -> None:
        for directory in self._unique():
            directory.mkdir(exist_ok=True)

    def group(self, name: str) -> Group:
        directories = {controller: directory / name for controller, directory in self._directories.items()}
        return GroupV1(name, directories, self._unified / name if self._unified else None)

    def network_unlimited(self) -> str:
        return (
            network.missing() if self._unified else "it wants a hierarchy of control groups version 2, to be written"
        )

    def names(self) -> list[str]:
        found: set[str] = set()
        for directory in self._unique():
            if directory.is_dir():
                found.update(child.name for child in directory.iterdir() if child.is_dir())
        return sorted(found)

    def close(self) -> None:
        if not self.names():
            for directory in self._unique():
                if directory.is_dir():
                    directory.rmdir()

    def _unique(self) -> list[Path]:
        unified = [self._unified] if self._unified else []
        return [*dict.fromkeys(self._directories.values()), *unified]


class GroupV1(Group):
    """A directory of the same name in each controller's mount."""

    # Moves the writing thread alone, which needs no lock against forks; `cgroup.procs` waits for an RCU grace period,
    # 5 to 26 ms (docs/decisions/0023-waking.md).
    entrance = "tasks"

    def __init__(self, name: str, directories: Mapping[str, Path], unified: Path | None = None) -> None:
        super().__init__(name)
        self._by_controller = dict(directories)
        self._unique = list(dict.fromkeys(self._by_controller.values()))
        self._unified = unified

    def directories(self) -> list[Path]:
        limited = self._unified is not None and self._unified.is_dir()
        return [*self._unique, *([self._unified] if self._unified and limited else [])]

    def limit_network(self, bits_per_s: int) -> None:
        assert self._unified is not None
        self._unified.mkdir()
        network.limit(self._unified, bits_per_s)

    def limit(self, limits: Limits, *, lift: bool = False) -> None:
        memory, cpu, pids = (self._by_controller.get(name) for name in ("memory", "cpu", "pids"))
        if memory and limits.memory_bytes is not None:
            self._limit_memory(memory, limits.memory_bytes)
        if cpu and (quota := limits.cpu_quota_us) is not None:
            (cpu / "cpu.cfs_period_us").write_text(str(CPU_PERIOD_US))
            (cpu / "cpu.cfs_quota_us").write_text(str(quota))
        elif cpu and lift:
            (cpu / "cpu.cfs_quota_us").write_text("-1")
        if pids and limits.pids is not None:
            (pids / "pids.max").write_text(str(limits.pids))

    def counters(self) -> Counters:
        nowhere = Path("/nonexistent")
        memory, cpu, pids = (self._by_controller.get(name, nowhere) for name in ("memory", "cpu", "pids"))
        throttled = base.read_table(cpu / "cpu.stat")
        return Counters(
            oom_kills=base.read_table(memory / "memory.oom_control").get("oom_kill", 0),
            memory_bytes=base.read_int(memory / "memory.usage_in_bytes"),
            memory_peak_bytes=base.read_int(memory / "memory.max_usage_in_bytes"),
            pids=base.read_int(pids / "pids.current"),
            pids_refused=base.read_table(pids / "pids.events").get("max", 0),
            cpu_s=self.cpu_s(),
            throttled_periods=throttled.get("nr_throttled", 0),
            throttled_s=throttled.get("throttled_time", 0) / _NS_PER_S,
        )

    def cpu_s(self) -> float:
        account = self._by_controller.get("cpuacct")
        return base.read_int(account / "cpuacct.usage") / _NS_PER_S if account else 0.0

    def kill(self) -> None:
        pids = self._by_controller.get("pids")
        if pids:
            # No more forks, so that a fork bomb cannot outrun the signals.
            with contextlib.suppress(OSError):  # the group may be on its way out
                (pids / "pids.max").write_text("0")
        base.kill_all(self.pids())

    @staticmethod
    def _limit_memory(directory: Path, limit_bytes: int) -> None:
        both = directory / "memory.memsw.limit_in_bytes"
        plain = directory / "memory.limit_in_bytes"
        # memsw may never be below the plain limit: raise it first, lower it last.
        current = base.read_int(plain)
        order = [plain, both] if not current or limit_bytes <= current else [both, plain]
        for path in order:
            if path.exists():  # memsw needs swap accounting
                path.write_text(str(limit_bytes))
