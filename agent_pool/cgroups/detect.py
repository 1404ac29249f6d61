"""Which control groups this process may use, and which limits it lives under itself."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent_pool.cgroups import base
from agent_pool.cgroups.base import Group, Hierarchy
from agent_pool.cgroups.v1 import GroupV1, HierarchyV1
from agent_pool.cgroups.v2 import GroupV2, HierarchyV2

_CONTROLLERS_V1 = ("memory", "cpu", "cpuacct", "pids")


@dataclass(frozen=True)
class Mounts:
    """Where our own process stands: directories, per controller of version 1, and of version 2."""

    v1: Mapping[str, Path] = field(default_factory=dict)
    v2: Path | None = None


def find(mountinfo: str, cgroup: str) -> Mounts:
    """Our own directories, from the texts of /proc/self/mountinfo and /proc/self/cgroup (cgroups(7))."""
    paths_v1: dict[str, str] = {}
    path_v2 = None
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            path_v2 = path
        for controller in controllers.split(","):
            if controller in _CONTROLLERS_V1:
                paths_v1[controller] = path
    v1: dict[str, Path] = {}
    v2 = None
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        root, mount = left.split(" ")[3:5]
        if kind == "cgroup2" and path_v2 is not None:
            v2 = _below(mount, root, path_v2)
        if kind == "cgroup":
            for controller in options.replace(" ", ",").split(","):
                if controller in paths_v1:
                    v1[controller] = _below(mount, root, paths_v1[controller])
    return Mounts(v1, v2)


def _below(mount: str, root: str, path: str) -> Path:
    # In a container the mount shows only a part of the tree, whose top is `root`.
    inner = path.removeprefix(root) if root != "/" else path
    return Path(mount) / inner.lstrip("/")


def group_of(pid: int) -> Group | None:
    """The group of another's process, to be read: not one of ours, like a container's. None if it is gone."""
    try:
        cgroup = Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    mounts = find(Path("/proc/self/mountinfo").read_text(), cgroup)
    # On hybrid machines the unified tree has no controllers.
    if mounts.v2 and (not mounts.v1 or (mounts.v2 / "memory.current").exists()):
        return GroupV2(mounts.v2.name, mounts.v2)
    memory = mounts.v1.get("memory")
    return GroupV1(memory.name if memory else "", mounts.v1) if mounts.v1 else None


def is_in(pid: int, container: str) -> bool:
    """Whether a process is in a control group of a container with that id; False if it is gone."""
    return container in base.read(Path(f"/proc/{pid}/cgroup"))


def unified_of(pid: int) -> Path | None:
    """The version 2 directory of another's process, with controllers or without; None if there is none."""
    cgroup = base.read(Path(f"/proc/{pid}/cgroup"))
    return find(Path("/proc/self/mountinfo").read_text(), cgroup).v2


def here() -> Mounts:
    """Of this process."""
    return find(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())


def hierarchy(mounts: Mounts, home: Path) -> Hierarchy | None:
    """The groups to use for the platform in `home`, or None if there are none that we may write.

    A version 2 tree with the memory controller goes first; on hybrid machines it has none, and version 1 does.
    """
    name = "agentruntime-" + hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
    if mounts.v2 and os.access(mounts.v2, os.W_OK) and os.access(mounts.v2 / "cgroup.procs", os.W_OK):
        unified = HierarchyV2(_without_leaf(mounts.v2, name), name)
        if "memory" in unified.enforceable:
            return unified
    usable = {controller: path for controller, path in mounts.v1.items() if os.access(path, os.W_OK)}
    beside = mounts.v2 if mounts.v2 and os.access(mounts.v2, os.W_OK) else None
    return HierarchyV1(usable, name, beside) if usable else None


def _without_leaf(own: Path, name: str) -> Path:
    # A restarted pool may have been started by one that had moved to its leaf.
    return own.parent if own.name == f"{name}-pool" else own


def own_limits(mounts: Mounts) -> tuple[int | None, int | None]:
    """Our own caps: thousandths of a core, and bytes; None where there is none, in any group above us."""
    cpu: list[int] = []
    memory: list[int] = []
    for directory in _upwards(mounts.v2):
        quota, _, period = base.read(directory / "cpu.max").strip().partition(" ")
        if quota.isdigit():
            cpu.append(int(quota) * 1000 // int(period))
        if limit := base.read_int(directory / "memory.max"):
            memory.append(limit)
    for directory in _upwards(mounts.v1.get("cpu")):
        period_us = base.read_int(directory / "cpu.cfs_period_us")
        if (quota_us := base.read_int(directory / "cpu.cfs_quota_us")) and period_us:
            cpu.append(quota_us * 1000 // period_us)
    for directory in _upwards(mounts.v1.get("memory")):
        if limit := base.read_int(directory / "memory.limit_in_bytes"):
            memory.append(limit)
    return min(cpu, default=None), min(memory, default=None)


def _upwards(directory: Path | None) -> list[Path]:
    if directory is None:
        return []
    return [path for path in (directory, *directory.parents) if (path / "cgroup.procs").exists()]
