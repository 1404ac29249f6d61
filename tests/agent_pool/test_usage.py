"""Rates of the last few seconds, what is measured without groups, and whose network is counted."""

import os
from pathlib import Path

import psutil
import pytest

from agent_pool import usage
from agent_pool.usage import Meter, Rates, Traffic

_NET_DEV = """\
Inter-|   Receive                              |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo: 999999 1234 0 0 0 0 0 0 999999 1234 0 0 0 0 0 0
  eth0:   1000   10 0 0 0 0 0 0    200    3 0 0 0 0 0 0
eth1:50 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0
"""


def test_rates_are_of_the_last_few_seconds() -> None:
    meter = Meter(100.0)
    assert meter.rates(100.0, 0.0, None) == Rates()
    assert meter.rates(102.0, 1.0, None) == Rates(cpu_percent=50.0)
    for second in range(103, 130):
        meter.rates(float(second), 1.0, None)
    assert meter.rates(130.0, 1.0, None).cpu_percent == 0.0
    assert meter.rates(131.0, 2.0, None).cpu_percent < 25.0


def test_network_rates() -> None:
    meter = Meter(100.0)
    assert meter.rates(102.0, 0.0, Traffic(1000, 10)) == Rates(0.0, 500.0, 5.0)
    for second in range(103, 110):
        meter.rates(float(second), 0.0, Traffic(1000, 10))
    assert meter.rates(110.0, 0.0, Traffic(1000, 20)) == Rates(0.0, 0.0, 2.0)


def test_what_was_used_before_anybody_looked_is_no_rate() -> None:
    meter = Meter(None)
    assert meter.rates(100.0, 5000.0, None) == Rates()
    assert meter.rates(101.0, 5000.5, None).cpu_percent == pytest.approx(50.0)


def test_without_groups_processes_are_measured() -> None:
    own = usage.stats(os.getpid(), None, share=True)
    assert own.cpu_s > 0
    assert own.memory_bytes > 10**6
    assert own.memory_pss_bytes > 10**6
    assert own.pids == 1
    assert own.gpus == ()
    assert usage.stats(os.getpid(), None).memory_pss_bytes == 0
    gone = usage.stats(2**22 + 1, None, share=True)
    assert gone.memory_bytes == gone.memory_pss_bytes == 0
    assert gone.network_received_bytes is None


def _processes(directory: Path, *names: str) -> Path:
    """As /proc: processes of these names, each with a network of its own."""
    for name in names:
        (directory / name / "ns").mkdir(parents=True)
        (directory / name / "ns/net").touch()
        (directory / name / "net").mkdir()
        (directory / name / "net/dev").write_text(_NET_DEV)
    return directory


def test_all_interfaces_but_loopback_are_counted(tmp_path: Path) -> None:
    assert usage.network(7, _processes(tmp_path, "self", "7")) == Traffic(1050, 207)


def test_a_network_that_is_ours_too_is_not_a_workers_own(tmp_path: Path) -> None:
    processes = _processes(tmp_path, "self")
    (processes / "7").symlink_to(processes / "self")
    assert usage.network(7, processes) is None
    assert usage.network(8, processes) is None
    assert usage.network(os.getpid()) is None


def test_the_kernels_own_table_is_read_as_psutil_reads_it(tmp_path: Path) -> None:
    (tmp_path / "7").symlink_to("/proc/self")
    _processes(tmp_path, "self")

    def counted() -> Traffic:
        cards = psutil.net_io_counters(pernic=True, nowrap=False)
        others = [card for name, card in cards.items() if name != "lo"]
        return Traffic(sum(card.bytes_recv for card in others), sum(card.bytes_sent for card in others))

    before, found, after = counted(), usage.network(7, tmp_path), counted()
    assert found is not None
    assert before.received_bytes <= found.received_bytes <= after.received_bytes
    assert before.sent_bytes <= found.sent_bytes <= after.sent_bytes
