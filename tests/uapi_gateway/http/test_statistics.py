"""Envoy's statistics as figures per agent, in health documents and metrics."""

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from prometheus_client.parser import text_string_to_metric_families

from tests.uapi_gateway.test_registry import NOW, agent, outside
from uapi_gateway import response_cache, waking
from uapi_gateway.http.health import agent_document, platform_document
from uapi_gateway.http.metrics import exposition
from uapi_gateway.http.observation import Observation
from uapi_gateway.http.statistics import read_statistics
from uapi_gateway.registry import Registry
from uapi_gateway.relay import Figures

TEXT = """\
# TYPE envoy_cluster_grpc_0 counter
envoy_cluster_grpc_0{envoy_cluster_name="agent/a"} 3
envoy_cluster_grpc_0{envoy_cluster_name="agent/a-01"} 4
envoy_cluster_grpc_0{envoy_cluster_name="control"} 100
# TYPE envoy_cluster_grpc_5 counter
envoy_cluster_grpc_5{envoy_cluster_name="agent/a"} 2
# TYPE envoy_cluster_grpc_99 counter
envoy_cluster_grpc_99{envoy_cluster_name="agent/a"} 1
# TYPE envoy_cluster_grpc_success counter
envoy_cluster_grpc_success{envoy_cluster_name="agent/a"} 3
# TYPE envoy_cluster_upstream_rq_retry counter
envoy_cluster_upstream_rq_retry{envoy_cluster_name="agent/a"} 6
# TYPE envoy_cluster_upstream_rq_active gauge
envoy_cluster_upstream_rq_active{envoy_cluster_name="agent/a"} 2
# TYPE envoy_cluster_upstream_rq_time histogram
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="agent/a",le="5"} 1
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="agent/a",le="+Inf"} 9
envoy_cluster_upstream_rq_time_sum{envoy_cluster_name="agent/a"} 1500
envoy_cluster_upstream_rq_time_count{envoy_cluster_name="agent/a"} 9
# TYPE envoy_http_downstream_rq_completed counter
envoy_http_downstream_rq_completed{envoy_http_conn_manager_prefix="tcp"} 40
envoy_http_downstream_rq_completed{envoy_http_conn_manager_prefix="unix"} 2
"""
WORKERS = {"a-01": "a"}


def observation() -> Observation:
    worker = pool.Worker(worker_id="a-01", agent="a", state=pool.WORKER_STATE_READY, restarts=2, pid=7)
    worker.usage.memory_bytes, worker.usage.cpu_percent, worker.usage.cpu_seconds = 12_000_000, 25.4, 7.5
    worker.ready_at.seconds = int(NOW) - 9000
    node = pool.GetNodeResponse(capacity=pool.NodeResources(cpu_millis=2000, memory_bytes=10**9))
    statistics = read_statistics(TEXT, WORKERS)
    return Observation(statistics, [worker], node, own_memory_bytes=500_000_000, own_cpu_percent=10, uptime_s=9060)


def test_calls_to_workers_count_as_their_agents() -> None:
    found = read_statistics(TEXT, WORKERS)
    assert found.completed == 42
    calls = found.agents["a"]
    assert calls.codes == {"OK": 7, "NOT_FOUND": 2, "UNKNOWN": 1}
    assert (calls.total, calls.retries, calls.in_flight) == (10, 6, 2)
    assert calls.durations.buckets == {0.005: 1, float("inf"): 9}
    assert (calls.durations.count, calls.durations.sum_s) == (9, 1.5)
    assert found.agents.keys() == {"a"}


def test_the_platforms_document() -> None:
    assert platform_document(observation()) == {
        "status": "healthy",
        "uptime": "2h 31m",
        "requests_processed": 42,
        "memory_usage": "512MB",
        "cpu_usage": "35%",
    }
    ill = platform_document(Observation(None, None, None, conversations_away=True))
    assert ill["status"] == "unhealthy"
    assert ill["reason"] == (
        "Envoy does not answer; the pool does not answer; the conversations cannot be read or written"
    )


def test_an_agents_document() -> None:
    assert agent_document(agent("a", "a-01"), observation(), NOW) == {
        "status": "healthy",
        "uptime": "2h 30m",
        "requests_processed": 10,
        "memory_usage": "12MB",
        "cpu_usage": "25%",
    }
    unready = agent_document(agent("b", "b-01", ready=False), observation(), NOW)
    assert (unready["status"], unready["reason"]) == ("unhealthy", "no worker is ready yet")
    registered = Registry().register(outside("x"), 30, NOW)
    assert agent_document(registered, observation(), NOW) == {"status": "healthy", "requests_processed": 0}


def test_the_metrics_page() -> None:
    page = exposition(observation(), [agent("a", "a-01")]).decode()
    samples = {
        (s.name, *sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(page)
        for s in family.samples
    }
    a = ("agent", "a")
    assert samples["uapi_agent_calls_total", a, ("code", "OK")] == 7
    assert samples["uapi_agent_call_duration_seconds_bucket", a, ("le", "0.005")] == 1
    assert samples["uapi_agent_call_duration_seconds_count", a] == 9
    assert samples["uapi_agent_call_duration_seconds_sum", a] == 1.5
    assert samples["uapi_agent_state", a, ("state", "ready")] == 1
    assert samples["uapi_workers", a, ("state", "ready")] == 1
    assert samples["uapi_worker_memory_bytes", a, ("worker", "a-01")] == 12_000_000
    assert samples["uapi_worker_cpu_seconds_total", a, ("worker", "a-01")] == 7.5
    assert samples["uapi_node_cpu_cores", ("kind", "capacity")] == 2
    assert samples["uapi_up", ("process", "pool")] == 1
    assert samples["uapi_agent_asleep", a] == 0
    empty = exposition(Observation(None, None, None), []).decode()
    assert 'uapi_up{process="envoy"} 0.0' in empty


def test_the_metrics_page_shows_what_the_relay_does() -> None:
    wakes = waking.Figures()
    for outcome, took_s in ((waking.OK, 0.02), (waking.OK, 500.0), (waking.FAILED, 1.0)):
        wakes.add(outcome, took_s)
    caches = response_cache.Figures(hits=3, misses=2, evictions=1, size_bytes=4000)
    figures = Figures(waiting={"a": 7}, wakes=[("a", wakes)], caches=[("a", caches)])
    page = exposition(Observation(None, None, None, relay=figures), [agent("a", asleep=True)]).decode()
    lines = page.splitlines()
    for line in (
        'uapi_agent_asleep{agent="a"} 1.0',
        'uapi_agent_state{agent="a",state="asleep"} 1.0',
        'uapi_relay_queued{agent="a"} 7.0',
        'uapi_wakes_total{agent="a",outcome="ok"} 2.0',
        'uapi_wakes_total{agent="a",outcome="failed"} 1.0',
        'uapi_wake_seconds_bucket{agent="a",le="0.01"} 0.0',
        'uapi_wake_seconds_bucket{agent="a",le="0.025"} 1.0',
        'uapi_wake_seconds_bucket{agent="a",le="+Inf"} 2.0',
        'uapi_wake_seconds_sum{agent="a"} 500.02',
        'uapi_cache_hits_total{agent="a"} 3.0',
        'uapi_cache_misses_total{agent="a"} 2.0',
        'uapi_cache_evictions_total{agent="a"} 1.0',
        'uapi_cache_bytes{agent="a"} 4000.0',
    ):
        assert line in lines


def test_an_agent_that_sleeps_is_healthy() -> None:
    document = agent_document(agent("a", asleep=True), observation(), 0)
    assert (document["status"], document["state"]) == ("healthy", "asleep")
    assert "reason" not in document
    assert agent_document(agent("a"), observation(), 0)["status"] == "unhealthy"
