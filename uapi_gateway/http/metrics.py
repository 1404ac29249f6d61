"""The metrics page: an observation as Prometheus text. The names are documented in docs/metrics.md."""

import math
from collections.abc import Iterable, Iterator
from itertools import accumulate

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_proto
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from uapi_gateway import waking
from uapi_gateway.conversations import writing
from uapi_gateway.http import worker_metrics
from uapi_gateway.http.observation import Observation
from uapi_gateway.http.statistics import Statistics
from uapi_gateway.registry import Agent

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(observed: Observation, agents: Iterable[Agent]) -> bytes:
    """The page's text."""
    known = list(agents)
    collector = CollectorRegistry(auto_describe=False)
    collector.register(
        _Families(
            [
                *_platform(observed),
                *_agents(observed, known),
                *_relay(observed, known),
                *_egress(observed),
                *_conversations(observed.conversations),
                *_workers(observed),
            ]
        )
    )
    return generate_latest(collector)


class _Families:
    """Finished families, in the form that the library collects."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _platform(observed: Observation) -> Iterator[Metric]:
    up = GaugeMetricFamily("uapi_up", "1 if the process answers.", labels=["process"])
    up.add_metric(["gateway"], 1)
    up.add_metric(["envoy"], float(observed.statistics is not None))
    up.add_metric(["pool"], float(observed.node is not None))
    yield up
    yield CounterMetricFamily("uapi_envoy_restarts", "Times the gateway started Envoy anew.", observed.envoy_restarts)
    yield GaugeMetricFamily("uapi_gateway_uptime_seconds", "Since the gateway started.", observed.uptime_s)
    if observed.statistics is not None:
        yield CounterMetricFamily(
            "uapi_requests", "Requests that Envoy has answered, of all kinds.", observed.statistics.completed
        )
    if observed.node is None:
        return
    for name, text, scale in (
        ("cpu_cores", "CPU cores", 0.001),
        ("memory_bytes", "Bytes of memory", 1.0),
        ("gpus", "GPUs", 1.0),
    ):
        field = "cpu_millis" if name == "cpu_cores" else name
        family = GaugeMetricFamily(f"uapi_node_{name}", f"{text} of the machine.", labels=["kind"])
        family.add_metric(["capacity"], getattr(observed.node.capacity, field) * scale)
        family.add_metric(["reserved"], getattr(observed.node.reserved, field) * scale)
        yield family


def _agents(observed: Observation, agents: list[Agent]) -> Iterator[Metric]:
    state = GaugeMetricFamily("uapi_agent_state", "1 for the state that the agent is in.", labels=["agent", "state"])
    for agent in agents:
        name = registry_proto.AgentState.Name(agent.info().state).removeprefix("AGENT_STATE_").lower()
        state.add_metric([agent.agent_id, name], 1)
    yield state
    statistics = observed.statistics or Statistics()
    calls = CounterMetricFamily("uapi_agent_calls", "Calls answered, by gRPC code.", labels=["agent", "code"])
    retries = CounterMetricFamily("uapi_agent_retries", "Calls that Envoy repeated.", labels=["agent"])
    in_flight = GaugeMetricFamily("uapi_agent_calls_in_flight", "Calls that are being answered.", labels=["agent"])
    durations = HistogramMetricFamily(
        "uapi_agent_call_duration_seconds", "From a call's arrival at an agent to its end.", labels=["agent"]
    )
    for agent_id, found in sorted(statistics.agents.items()):
        for code, count in sorted(found.codes.items()):
            calls.add_metric([agent_id, code], count)
        retries.add_metric([agent_id], found.retries)
        in_flight.add_metric([agent_id], found.in_flight)
        if found.durations.buckets:
            buckets = [
                (f"{bound:g}" if math.isfinite(bound) else "+Inf", count)
                for bound, count in sorted(found.durations.buckets.items())
            ]
            durations.add_metric([agent_id], buckets, found.durations.sum_s)
    yield from (calls, retries, in_flight, durations)


def _relay(observed: Observation, agents: list[Agent]) -> Iterator[Metric]:
    """What goes by way of the relay: calls that wait, wakes, answers that are given again."""
    label = ["agent"]
    asleep = GaugeMetricFamily(
        "uapi_agent_asleep", "1 if it has no process and the next call wakes it.", labels=label
    )
    queued = GaugeMetricFamily("uapi_relay_queued", "Calls that wait in the gateway for a worker.", labels=label)
    for agent in agents:
        asleep.add_metric([agent.agent_id], float(agent.asleep))
        queued.add_metric([agent.agent_id], observed.relay.waiting.get(agent.agent_id, 0))
    outcomes = CounterMetricFamily("uapi_wakes", "Wakes that calls asked for.", labels=["agent", "outcome"])
    took = HistogramMetricFamily("uapi_wake_seconds", "From the first call to a ready worker.", labels=label)
    for agent_id, wakes in observed.relay.wakes:
        for outcome, count in sorted(wakes.outcomes.items()):
            outcomes.add_metric([agent_id, outcome], count)
        bounds = [*(f"{bound:g}" for bound in waking.BUCKETS_S), "+Inf"]
        took.add_metric([agent_id], list(zip(bounds, accumulate(wakes.buckets), strict=True)), wakes.sum_s)
    hits = CounterMetricFamily("uapi_cache_hits", "Calls answered by the response cache.", labels=label)
    misses = CounterMetricFamily("uapi_cache_misses", "Calls that it could not answer.", labels=label)
    evictions = CounterMetricFamily("uapi_cache_evictions", "Answers that had to make room for others.", labels=label)
    size = GaugeMetricFamily("uapi_cache_bytes", "Held by answers that are kept.", labels=label)
    for agent_id, figures in observed.relay.caches:
        hits.add_metric([agent_id], figures.hits)
        misses.add_metric([agent_id], figures.misses)
        evictions.add_metric([agent_id], figures.evictions)
        size.add_metric([agent_id], figures.size_bytes)
    yield from (asleep, queued, outcomes, took, hits, misses, evictions, size)


def _egress(observed: Observation) -> Iterator[Metric]:
    connections = CounterMetricFamily(
        "uapi_egress_connections", "Connections of an agent to hosts outside.", labels=["agent", "outcome"]
    )
    is_open = GaugeMetricFamily("uapi_egress_open", "Of these, those that are there now.", labels=["agent"])
    carried = CounterMetricFamily("uapi_egress_bytes", "Bytes on them.", labels=["agent", "direction"])
    for agent_id, found in sorted(observed.egress.items()):
        for outcome, count in sorted(found.outcomes.items()):
            connections.add_metric([agent_id, outcome], count)
        is_open.add_metric([agent_id], found.open)
        carried.add_metric([agent_id, "sent"], found.bytes_sent)
        carried.add_metric([agent_id, "received"], found.bytes_received)
    yield from (connections, is_open, carried)


def _conversations(found: writing.Figures) -> Iterator[Metric]:
    """What the event log writes."""
    appends = CounterMetricFamily(
        "uapi_conversation_appends", "Appends to the event log; many share a transaction.", labels=["outcome"]
    )
    appends.add_metric(["written"], found.appends - found.refused)
    appends.add_metric(["refused"], found.refused)
    commits = HistogramMetricFamily("uapi_conversation_commit_seconds", "Transactions of the event log.")
    bounds = [*(f"{bound:g}" for bound in writing.BUCKETS_S), "+Inf"]
    commits.add_metric([], list(zip(bounds, accumulate(found.buckets), strict=True)), found.commit_s)
    yield from (appends, commits)
    yield CounterMetricFamily(
        "uapi_conversation_store_failures", "Times the store of conversations could not be reached.", found.failures
    )
    yield GaugeMetricFamily("uapi_conversations_open", "Conversations that a worker has or waits for.", found.open)
    yield GaugeMetricFamily("uapi_conversation_watchers", "Those who watch a conversation.", found.watchers)


def _workers(observed: Observation) -> Iterator[Metric]:
    workers = observed.workers or ()
    counts: dict[tuple[str, str], int] = {}
    for worker in workers:
        state = pool.WorkerState.Name(worker.state).removeprefix("WORKER_STATE_").lower()
        counts[worker.agent, state] = counts.get((worker.agent, state), 0) + 1
    states = GaugeMetricFamily("uapi_workers", "Workers by state.", labels=["agent", "state"])
    for (agent, state), count in sorted(counts.items()):
        states.add_metric([agent, state], count)
    yield states
    yield from worker_metrics.families(workers)
