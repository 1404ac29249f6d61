"""What is said of an end."""

import pytest

from agent_pool.cgroups.base import Counters, Limits
from agent_pool.drivers.exits import explain

LIMITS = Limits(memory_bytes=512_000_000, pids=40)
OOM = Counters(oom_kills=1)


@pytest.mark.parametrize(
    ("status", "counters", "says"),
    [
        (0, Counters(), "exit status 0"),
        (1 << 8, Counters(), "exit status 1"),
        (9, Counters(), "killed by signal 9"),
        (9, OOM, "OOM-killed at 512MB"),
        (None, OOM, "OOM-killed at 512MB"),
        (None, Counters(), "ended, and how is not known"),
        (1 << 8, OOM, "exit status 1, after a process of it was OOM-killed at 512MB"),
        (
            11,
            Counters(pids_refused=3),
            "killed by signal 11, after a fork beyond 40 processes and threads was refused",
        ),
    ],
)
def test_explain(status: int | None, counters: Counters, says: str) -> None:
    assert explain(status, counters, LIMITS) == says
