"""The same checks on this machine's kernel, and on a real kernel with cgroup v2, booted as a process."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent_pool.cgroups import detect
from agent_pool.cgroups.base import Hierarchy
from tests.agent_pool.cgroups import checks

pytestmark = [pytest.mark.integration, pytest.mark.root]

ROOT = Path(__file__).parents[3]
# Mounts what a container or a boot would have mounted. The pool's group has a shell beside it, as a service's may.
INIT = """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up 2>/dev/null
mkdir /sys/fs/cgroup/service
cd {root}
(
    echo "+cpu +memory +pids" > /sys/fs/cgroup/cgroup.subtree_control
    sh -c 'echo $$ > /sys/fs/cgroup/service/cgroup.procs
           {python} -m tests.agent_pool.cgroups.checks {home} "cgroup v2"
           echo status $?'
) > {out} 2>&1
poweroff -f
"""


@pytest.fixture
def hierarchy(tmp_path: Path) -> Iterator[Hierarchy]:
    found = detect.hierarchy(detect.here(), tmp_path)
    assert found is not None, "no writable control groups: run the tests marked `root` as root"
    found.prepare()
    yield found
    for name in found.names():
        found.group(name).remove()
    found.close()


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
def test_on_this_kernel(hierarchy: Hierarchy, check: Callable[[Hierarchy], None]) -> None:
    check(hierarchy)


def test_on_a_kernel_with_version_2(tmp_path: Path) -> None:
    kernel = shutil.which("linux.uml") or shutil.which("linux.uml", path="/usr/bin")
    assert kernel, "this test boots a kernel as a process: apt-get install user-mode-linux"
    out, init = tmp_path / "out", tmp_path / "init.sh"
    init.write_text(INIT.format(root=ROOT, python=sys.executable, home=tmp_path, out=out))
    init.chmod(0o755)
    arguments = [
        "mem=512M",
        "rootfstype=hostfs",
        "rootflags=/",
        "rw",
        f"init={init}",
        "quiet",
        "con=null",
        "con0=fd:0,fd:1",
    ]
    ended = subprocess.run(
        [kernel, *arguments, f"uml_dir={tmp_path}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=90, check=False,
    )  # fmt: skip
    text = out.read_text() if out.exists() else ended.stdout.decode(errors="replace")
    assert "all passed" in text, text
    assert text.rstrip().endswith("status 0"), text
