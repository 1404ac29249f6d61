"""Where our own groups are, on machines of every kind."""

from pathlib import Path

from agent_pool.cgroups import detect
from agent_pool.cgroups.detect import Mounts, find
from agent_pool.cgroups.v1 import HierarchyV1
from agent_pool.cgroups.v2 import HierarchyV2

V1 = """\
30 29 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
31 29 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 29 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
33 29 0:29 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
"""


def test_version_1_nested() -> None:
    mounts = find(V1, "4:memory:/a/b\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n")
    assert mounts.v1 == {
        "memory": Path("/sys/fs/cgroup/memory/a/b"),
        "cpu": Path("/sys/fs/cgroup/cpu,cpuacct"),
        "cpuacct": Path("/sys/fs/cgroup/cpu,cpuacct"),
    }
    assert mounts.v2 == Path("/sys/fs/cgroup/unified")


def test_version_1_in_a_container_that_sees_a_part() -> None:
    mountinfo = "31 29 0:27 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    assert find(mountinfo, "4:memory:/docker/abc/x\n").v1 == {"memory": Path("/sys/fs/cgroup/memory/x")}


def test_version_2() -> None:
    mounts = find(
        "32 29 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
        "0::/user.slice/user-1000.slice/agent.service\n",
    )
    assert mounts == Mounts({}, Path("/sys/fs/cgroup/user.slice/user-1000.slice/agent.service"))


def test_no_groups() -> None:
    assert find("", "") == Mounts()
    assert detect.hierarchy(Mounts(), Path("/home")) is None


def test_own_limits_of_version_2(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    for directory in (tmp_path, tmp_path / "a", inner):
        (directory / "cgroup.procs").touch()
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "a" / "memory.max").write_text("1000\n")
    (inner / "cpu.max").write_text("max 100000\n")
    (inner / "memory.max").write_text("max\n")
    assert detect.own_limits(Mounts({}, inner)) == (1500, 1000)
    assert detect.own_limits(Mounts()) == (None, None)


def test_a_hybrid_machine_uses_version_1(tmp_path: Path) -> None:
    for directory in ("v2", "memory"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "cgroup.procs").touch()
    (tmp_path / "v2" / "cgroup.controllers").write_text("\n")
    mounts = Mounts({"memory": tmp_path / "memory"}, tmp_path / "v2")
    assert isinstance(detect.hierarchy(mounts, tmp_path), HierarchyV1)
    (tmp_path / "v2" / "cgroup.controllers").write_text("cpu memory pids\n")
    assert isinstance(detect.hierarchy(mounts, tmp_path), HierarchyV2)
