"""What each worker uses, on the metrics page: every figure of `agent metrics`, and nothing that is not there."""

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from agentruntime.cli.figures import figures
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.agentruntime.cli.figures_samples import busy_worker
from uapi_gateway.http.worker_metrics import families

NOW_S = 1_700_000_060.0


class _Page:
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def samples(*workers: pool.Worker) -> dict[tuple[str, ...], float]:
    """The page's samples by name, without "uapi_worker_", and by what tells them apart but the agent."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(list(families(workers))))
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            assert sample.labels["agent"] == "busy"
            rest = [value for name, value in sorted(sample.labels.items()) if name != "agent"]
            key = (sample.name.removeprefix("uapi_worker_"), *rest)
            assert key not in found
            found[key] = sample.value
    return found


def test_they_are_the_figures_of_agent_metrics() -> None:
    worker = busy_worker(1, gpus=2)
    shown = figures(worker, NOW_S, share=False)
    use = shown.use
    expected: dict[tuple[str, ...], float | None] = {
        ("cpu_seconds_total", "busy-01"): use.cpu_seconds,
        ("cpu_limit_cores", "busy-01"): use.cpu_limit_cores,
        ("throttled_seconds_total", "busy-01"): use.throttled_seconds,
        ("throttled_periods_total", "busy-01"): use.throttled_periods,
        ("memory_bytes", "busy-01"): use.memory_bytes,
        ("memory_peak_bytes", "busy-01"): use.memory_peak_bytes,
        ("memory_limit_bytes", "busy-01"): use.memory_limit_bytes,
        ("pids", "busy-01"): use.pids,
        ("pids_limit", "busy-01"): use.pids_limit,
        ("network_received_bytes_total", "busy-01"): use.network_received_bytes,
        ("network_sent_bytes_total", "busy-01"): use.network_sent_bytes,
        ("lag_seconds", "busy-01"): shown.lag_seconds,
        ("start_time_seconds", "busy-01"): NOW_S - shown.uptime_seconds,
        ("restarts_total", "busy-01"): shown.restarts,
        ("crash_loop", "busy-01"): 0.0,
    }
    for gpu in use.gpus:
        expected["gpu_utilization_ratio", str(gpu.index), "busy-01"] = gpu.utilization_percent / 100
        expected["gpu_memory_bytes", str(gpu.index), "busy-01"] = gpu.memory_bytes
    assert samples(worker) == expected


def test_what_a_worker_does_not_have_is_left_out() -> None:
    bare = busy_worker(1, network=False)
    bare.resources.ClearField("cpu_limit_millis")
    assert not [name for name, *_ in samples(bare) if name.startswith(("network", "gpu", "cpu_limit"))]
    looping = pool.Worker(worker_id="busy-02", agent="busy", crash_loop=True, restarts=5)
    assert samples(looping) == {("restarts_total", "busy-02"): 5, ("crash_loop", "busy-02"): 1}


def test_of_two_with_one_name_the_one_that_stays_is_told() -> None:
    old, new = busy_worker(1), busy_worker(1)
    old.state, new.usage.pids = pool.WORKER_STATE_DRAINING, 99
    for workers in ((old, new), (new, old)):
        assert samples(*workers)["pids", "busy-01"] == 99
