"""What any version of control groups must do, checked with real processes on the kernel that runs this.

Run by pytest where this kernel has writable groups, and as a program inside a kernel with cgroup v2 (`python -m
tests.agent_pool.cgroups.checks HOME VERSION`), which prints a line per check and ends with status 1 at the first
that fails.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from agent_pool.cgroups import detect
from agent_pool.cgroups.base import Group, Hierarchy, Limits
from tests.waiting import until

MB = 2**20
EAT = "kept = []\nwhile True: kept.append(bytearray(b'x' * 2**20))"
SPIN = "import time\nend = time.monotonic() + 1.0\nwhile time.monotonic() < end: pass"
BOMB = """\
import os, time
made = 0
try:
    while made < 200:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
except BlockingIOError:
    os._exit(made)
os._exit(255)
"""
SLEEP = "import time\ntime.sleep(60)"


@contextlib.contextmanager
def inside(group: Group, program: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that joins the group before anything else, as a worker does."""
    descriptors = group.open_procs()

    def join() -> None:
        for descriptor in descriptors:
            os.write(descriptor, b"0")

    process = subprocess.Popen([sys.executable, "-S", "-c", program], preexec_fn=join, pass_fds=descriptors)  # noqa: PLW1509 — the way a worker joins; no threads here
    for descriptor in descriptors:
        os.close(descriptor)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def kills_what_eats_too_much(hierarchy: Hierarchy) -> None:
    group = hierarchy.create("eater", Limits(memory_bytes=40 * MB))
    with inside(group, EAT) as process:
        assert process.wait(30) == -signal.SIGKILL
    counters = group.counters()
    assert counters.oom_kills == 1, counters
    assert 30 * MB < counters.memory_peak_bytes <= 40 * MB, counters
    group.remove()


def throttles_what_spins(hierarchy: Hierarchy) -> None:
    group = hierarchy.create("spinner", Limits(cpu_millis=200))
    begun_s = time.monotonic()
    with inside(group, SPIN) as process:
        assert process.wait(60) == 0
    took_s = time.monotonic() - begun_s
    counters = group.counters()
    assert counters.throttled_periods >= 3, counters
    assert counters.throttled_s > 0.2, counters
    # A fifth of the time, and what is allowed until the first look.
    assert 0 < counters.cpu_s < 0.2 * took_s + 0.3, (counters, took_s)
    assert group.cpu_s() == counters.cpu_s
    group.remove()


def stops_a_fork_bomb(hierarchy: Hierarchy) -> None:
    group = hierarchy.create("bomb", Limits(pids=20))
    with inside(group, BOMB) as process:
        assert process.wait(30) == 19
    assert group.counters().pids_refused >= 1
    assert len(group.pids()) == 19
    group.remove()
    assert group.pids() == []


def kills_all_of_a_group(hierarchy: Hierarchy) -> None:
    group = hierarchy.create("sleeper", Limits(pids=20))
    with inside(group, SLEEP) as process:
        until(lambda: process.pid in group.pids())
        assert group.counters().pids >= 1
        group.kill()
        assert process.wait(10) == -signal.SIGKILL
    group.remove()


def can_change_its_limits(hierarchy: Hierarchy) -> None:
    group = hierarchy.create("changing", Limits(memory_bytes=64 * MB, cpu_millis=500, pids=10))
    for memory in (128 * MB, 32 * MB, 256 * MB):
        group.limit(Limits(memory_bytes=memory, cpu_millis=1000, pids=30))
    group.remove()


def lists_and_removes(hierarchy: Hierarchy) -> None:
    group = hierarchy.create("one", Limits(memory_bytes=64 * MB))
    hierarchy.create("two", Limits())
    assert hierarchy.names() == ["one", "two"]
    hierarchy.close()  # not while there are groups
    assert hierarchy.names() == ["one", "two"]
    for name in hierarchy.names():
        hierarchy.group(name).remove()
    group.remove()  # once more does nothing
    assert group.counters().memory_bytes == 0
    assert hierarchy.names() == []


CHECKS: list[Callable[[Hierarchy], None]] = [
    kills_what_eats_too_much,
    throttles_what_spins,
    stops_a_fork_bomb,
    kills_all_of_a_group,
    can_change_its_limits,
    lists_and_removes,
]


def main() -> None:
    hierarchy = detect.hierarchy(detect.here(), Path(sys.argv[1]))
    assert hierarchy is not None
    assert hierarchy.name == sys.argv[2], hierarchy.name
    assert hierarchy.enforceable == {"memory", "cpu", "pids"}, hierarchy.enforceable
    hierarchy.prepare()
    for check in CHECKS:
        check(hierarchy)
        print("passed", check.__name__, flush=True)
    hierarchy.close()
    print("all passed", flush=True)


if __name__ == "__main__":
    main()
