"""CPU percent, and what is measured without groups."""

import os

import pytest

from agent_pool import usage
from agent_pool.cgroups.base import Counters
from agent_pool.usage import CpuMeter


def test_percent_is_of_the_last_few_seconds() -> None:
    meter = CpuMeter(100.0)
    assert meter.percent(100.0, 0.0) == 0.0
    assert meter.percent(102.0, 1.0) == pytest.approx(50.0)
    for second in range(103, 130):
        meter.percent(float(second), 1.0)
    assert meter.percent(130.0, 1.0) == 0.0
    assert meter.percent(131.0, 2.0) < 25.0


def test_without_groups_processes_are_measured() -> None:
    own = usage.stats(Counters(), [os.getpid()])
    assert own.cpu_s > 0
    assert own.memory_bytes > 10**6
    assert own.memory_pss_bytes > 10**6
    assert own.pids == 1
    gone = usage.stats(Counters(), [2**22 + 1])
    assert gone.memory_bytes == gone.memory_pss_bytes == 0
