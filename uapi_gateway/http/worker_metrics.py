"""What each worker uses, as Prometheus families: the figures of `agent metrics`. Documented in docs/metrics.md."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

_LABELS = ["agent", "worker"]
_LEAVING = (pool.WORKER_STATE_DRAINING, pool.WORKER_STATE_STOPPED)


@dataclass(frozen=True)
class _Family:
    """One family with a sample for each worker of which the figure is known."""

    kind: type[GaugeMetricFamily] | type[CounterMetricFamily]
    # Without the "_total" of counters, which the library adds.
    name: str
    text: str
    value: Callable[[pool.Worker], float | None]
    # Whether a worker without a process has it too.
    always: bool = False


def _received(of: pool.Worker) -> float | None:
    return of.usage.network_received_bytes if of.usage.HasField("network_received_bytes") else None


def _sent(of: pool.Worker) -> float | None:
    return of.usage.network_sent_bytes if of.usage.HasField("network_sent_bytes") else None


_FAMILIES = [
    _Family(
        CounterMetricFamily, "uapi_worker_cpu_seconds", "CPU time since its start.", lambda w: w.usage.cpu_seconds
    ),
    _Family(
        GaugeMetricFamily, "uapi_worker_cpu_limit_cores", "Its CPU cap.",
        lambda w: w.resources.cpu_limit_millis / 1000 or None,
    ),
    _Family(
        CounterMetricFamily, "uapi_worker_throttled_seconds", "Held back by its CPU cap.",
        lambda w: w.usage.throttled_seconds,
    ),
    _Family(
        CounterMetricFamily, "uapi_worker_throttled_periods", "Periods in which its CPU cap held it back.",
        lambda w: w.usage.throttled_periods,
    ),
    _Family(
        GaugeMetricFamily, "uapi_worker_memory_bytes", "Memory charged to the worker.", lambda w: w.usage.memory_bytes
    ),
    _Family(
        GaugeMetricFamily, "uapi_worker_memory_peak_bytes", "The most memory so far.",
        lambda w: w.usage.memory_peak_bytes,
    ),
    _Family(
        GaugeMetricFamily, "uapi_worker_memory_limit_bytes", "Its memory cap.",
        lambda w: w.resources.memory_limit_bytes or None,
    ),
    _Family(GaugeMetricFamily, "uapi_worker_pids", "Its processes and threads.", lambda w: w.usage.pids),
    _Family(
        GaugeMetricFamily, "uapi_worker_pids_limit", "Its cap of processes and threads.",
        lambda w: w.resources.pids_limit or None,
    ),
    _Family(
        CounterMetricFamily, "uapi_worker_network_received_bytes", "Received by a network of its own.",
        _received,
    ),
    _Family(
        CounterMetricFamily, "uapi_worker_network_sent_bytes", "Sent by a network of its own.",
        _sent,
    ),
    _Family(
        GaugeMetricFamily, "uapi_worker_lag_seconds", "The longest its event loop was blocked between health checks.",
        lambda w: w.lag_seconds,
    ),
    _Family(
        GaugeMetricFamily, "uapi_worker_start_time_seconds", "When it was started, since the epoch.",
        lambda w: w.started_at.ToNanoseconds() / 1e9 or None,
    ),
    _Family(
        CounterMetricFamily, "uapi_worker_restarts", "Times it was started again.", lambda w: w.restarts, always=True
    ),
    _Family(
        GaugeMetricFamily, "uapi_worker_crash_loop", "1 if it fails again and again.",
        lambda w: float(w.crash_loop), always=True,
    ),
]  # fmt: skip


def families(workers: Iterable[pool.Worker]) -> Iterator[Metric]:
    """All of them. Of a worker without a process, only how often it was started again and whether it crash-loops."""
    chosen = _one_of_each_name(workers)
    for each in _FAMILIES:
        family = each.kind(each.name, each.text, labels=_LABELS)
        for worker in chosen:
            value = each.value(worker) if each.always or worker.pid else None
            if value is not None:
                family.add_metric([worker.agent, worker.worker_id], value)
        yield family
    yield from _gpus(chosen)


def _gpus(workers: Iterable[pool.Worker]) -> Iterator[Metric]:
    labels = [*_LABELS, "gpu"]
    # Prometheus' conventions: a share is a ratio of 1.
    utilization = GaugeMetricFamily(
        "uapi_worker_gpu_utilization_ratio", "Share of time in which a leased GPU worked.", labels=labels
    )
    memory = GaugeMetricFamily("uapi_worker_gpu_memory_bytes", "Memory of a leased GPU in use.", labels=labels)
    for worker in workers:
        for gpu in worker.usage.gpus:
            values = [worker.agent, worker.worker_id, str(gpu.index)]
            utilization.add_metric(values, gpu.utilization_percent / 100)
            memory.add_metric(values, gpu.memory_bytes)
    yield from (utilization, memory)


def _one_of_each_name(workers: Iterable[pool.Worker]) -> list[pool.Worker]:
    """A worker and the one that takes its place have one name, and Prometheus refuses a series told twice."""
    found: dict[tuple[str, str], pool.Worker] = {}
    for worker in workers:
        key = (worker.agent, worker.worker_id)
        if key not in found or found[key].state in _LEAVING:
            found[key] = worker
    return list(found.values())
