"""What is made of the pool's answers: sums, and rates between two looks."""

from dataclasses import replace

import pytest
from agentruntime.cli.figures import Gpu, Snapshot, Target, Use, figures, total

from tests.agentruntime.cli.figures_samples import MB, busy_worker

NOW_S = 1_700_000_060.0


def snapshot(at_s: float, *uses: tuple[str, int, Use]) -> Snapshot:
    of = figures(busy_worker(1), NOW_S, share=False)
    workers = tuple(replace(of, worker_id=worker_id, pid=pid, use=use) for worker_id, pid, use in uses)
    return Snapshot(Target("busy"), at_s, "RUNNING", "", None, workers)


def test_figures_of_a_worker() -> None:
    found = figures(busy_worker(1, gpus=1), NOW_S, share=True)
    assert (found.uptime_seconds, found.use.memory_share_bytes, found.use.cpu_limit_cores) == (60.0, 64 * MB, 2.0)
    assert found.use.gpus == (Gpu(0, 30.0, 10**9),)
    of_host = figures(busy_worker(1, network=False), NOW_S, share=False).use
    assert of_host.memory_share_bytes is None
    assert of_host.network_received_bytes is None
    assert of_host.network_sent_bytes_per_second is None


def test_a_total_has_a_limit_where_each_has_one() -> None:
    one = figures(busy_worker(1, gpus=1), NOW_S, share=True).use
    other = replace(one, cpu_limit_cores=None, network_received_bytes=None)
    both = total([one, other])
    assert (both.memory_bytes, both.memory_limit_bytes, both.cpu_limit_cores) == (256 * MB, 1024 * MB, None)
    assert (both.network_received_bytes, both.network_sent_bytes, len(both.gpus)) == (5 * MB, 4 * MB, 2)
    assert total([]) == Use()


def test_rates_are_those_since_the_look_before() -> None:
    before = snapshot(10.0, ("a-01", 1, Use(cpu_percent=1, cpu_seconds=4, network_received_bytes=100)))
    after = snapshot(
        12.0,
        ("a-01", 1, Use(cpu_percent=1, cpu_seconds=5, network_received_bytes=300)),
        ("a-02", 2, Use(cpu_percent=7, cpu_seconds=5)),
    ).since(before)
    assert after.workers[0].use.cpu_percent == pytest.approx(50.0)
    assert after.workers[0].use.network_received_bytes_per_second == 100.0
    # Of one that has just come, what the pool says; so of one that was started anew, and of the first look.
    assert after.workers[1].use.cpu_percent == 7
    anew = snapshot(14.0, ("a-01", 9, Use(cpu_percent=3)))
    assert anew.since(after) == anew
    assert before.since(None) == before
