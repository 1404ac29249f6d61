"""Envoy's own statistics, read and turned into figures per agent. Pure; the reading of the socket is elsewhere."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

import grpc
from prometheus_client.parser import text_string_to_metric_families

# Calls by code, durations and calls in flight of the agents' clusters; requests of the two listeners.
_FILTER = (
    r"^cluster\.(agent|cached)/[a-z0-9-]+\.(grpc\.(success|total|[0-9]+)|upstream_rq_(time|active|retry)$)"
    r"|^http\.(tcp|unix)\.downstream_rq_(total|completed|active)$"
)
TARGET = "/stats/prometheus?filter=" + quote(_FILTER, safe="")
_CODES = {str(code.value[0]): code.name for code in grpc.StatusCode}
_GRPC_CODE = re.compile(r"envoy_cluster_grpc_(\d+)(?:_total)?")


@dataclass
class Durations:
    """A histogram: calls at most so many seconds long, by upper bound, cumulative."""

    buckets: dict[float, float] = field(default_factory=dict)
    count: float = 0.0
    sum_s: float = 0.0


@dataclass
class AgentCalls:
    """What Envoy has counted for one agent since it started."""

    codes: dict[str, float] = field(default_factory=dict)
    durations: Durations = field(default_factory=Durations)
    in_flight: float = 0.0
    retries: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.codes.values())


@dataclass
class Statistics:
    """What Envoy has counted."""

    agents: dict[str, AgentCalls] = field(default_factory=dict)
    # Requests that Envoy has answered, of all kinds.
    completed: float = 0.0


def read_statistics(text: str, workers: Mapping[str, str]) -> Statistics:
    """Reads Envoy's Prometheus text.

    Args:
        text: the answer to `TARGET`.
        workers: the agent of each worker; calls to a worker count as its agent's.
    """
    found = Statistics()
    for name, labels, value in _samples(text):
        if name.startswith("envoy_http_downstream_rq_completed"):
            found.completed += value
        kind, _, target = labels.get("envoy_cluster_name", "").partition("/")
        if kind not in ("agent", "cached"):
            continue
        calls = found.agents.setdefault(workers.get(target, target), AgentCalls())
        _count(calls, name, labels, value)
    return found


def _count(calls: AgentCalls, name: str, labels: Mapping[str, str], value: float) -> None:
    if code := _GRPC_CODE.fullmatch(name):
        label = _CODES.get(code[1], "UNKNOWN")
        calls.codes[label] = calls.codes.get(label, 0.0) + value
        return
    durations = calls.durations
    match name:
        case "envoy_cluster_upstream_rq_time_bucket":
            bound_s = float(labels["le"]) / 1000
            durations.buckets[bound_s] = durations.buckets.get(bound_s, 0.0) + value
        case "envoy_cluster_upstream_rq_time_count":
            durations.count += value
        case "envoy_cluster_upstream_rq_time_sum":
            durations.sum_s += value / 1000
        case "envoy_cluster_upstream_rq_active":
            calls.in_flight += value
        case "envoy_cluster_upstream_rq_retry" | "envoy_cluster_upstream_rq_retry_total":
            calls.retries += value


def _samples(text: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value
