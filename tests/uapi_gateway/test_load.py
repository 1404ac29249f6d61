"""Calls counted once each, by Envoy's reports and the relay."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from envoy.config.endpoint.v3 import load_report_pb2
from envoy.service.load_stats.v3 import lrs_pb2

from tests.uapi_gateway.test_registry import agent
from uapi_gateway.load import Load
from uapi_gateway.registry import Registry


def said(cluster: str, in_progress: int, issued: int, priority: int = 0) -> Any:
    place = load_report_pb2.UpstreamLocalityStats(
        total_requests_in_progress=in_progress, total_issued_requests=issued, priority=priority
    )
    return load_report_pb2.ClusterStats(cluster_name=cluster, upstream_locality_stats=[place])


def load(running: Callable[[], Counter[str]] = Counter) -> Load:
    registry = Registry()
    registry.put_pool_agent(agent("a", "a-01"))
    registry.put_pool_agent(agent("b", "b-01"))
    return Load(registry, running)


def reported(counted: Load) -> dict[str, tuple[int, int, int]]:
    return {each.agent: (each.in_flight, each.begun, each.queued) for each in counted.report()}


def test_calls_to_a_worker_are_its_agents_and_calls_to_the_relay_are_not_envoys() -> None:
    counted = load()
    stats = [
        said("agent/a", 2, 5),
        said("agent/a-01", 1, 1),
        said("agent/b", 3, 3, priority=1),
        said("control", 9, 9),
    ]
    stats.append(said("agent/gone", 1, 1))
    counted.take(lrs_pb2.LoadStatsRequest(cluster_stats=stats))
    assert counted.due.is_set()
    assert counted.envoy_reports
    assert reported(counted) == {"a": (3, 6, 0)}
    # What has begun is said once; what is in flight as long as it is.
    last = counted.report()
    assert [(each.in_flight, each.begun) for each in last] == [(3, 0)]
    counted.take_back([pool.AgentLoad(agent="a", in_flight=9, begun=6)])
    assert reported(counted) == {"a": (3, 6, 0)}
    counted.take(lrs_pb2.LoadStatsRequest())
    assert reported(counted) == {}


def test_messages_that_run_are_load_without_their_callers() -> None:
    counted = load(lambda: Counter({"a": 2, "b": 1}))
    counted.take(lrs_pb2.LoadStatsRequest(cluster_stats=[said("agent/a", 3, 3)]))
    assert reported(counted) == {"a": (3, 3, 0), "b": (1, 0, 0)}


def test_what_envoy_carried_is_gone_with_it() -> None:
    counted = load()
    counted.take(lrs_pb2.LoadStatsRequest(cluster_stats=[said("agent/a", 2, 5)]))
    counted.envoy_left()
    assert not counted.envoy_reports
    assert reported(counted) == {"a": (0, 5, 0)}


def test_calls_that_envoy_no_longer_reports_are_looked_for() -> None:
    registry = Registry()
    registry.put_pool_agent(agent("a", "a-01"))
    counted = Load(registry)
    # An earlier gateway may have changed it.
    assert counted.doubtful == ["a"]
    counted.take_active("a", 0)
    assert counted.doubtful == []
    registry.put_pool_agent(agent("a", "a-01", ready=False))
    counted.take(lrs_pb2.LoadStatsRequest(cluster_stats=[said("agent/a", 2, 2)]))
    assert counted.doubtful == []
    counted.take(lrs_pb2.LoadStatsRequest(cluster_stats=[said("agent/a", 1, 1, priority=1)]))
    assert counted.doubtful == ["a"]
    counted.take_active("a", 3)
    assert reported(counted) == {"a": (2, 2, 0)}
    counted.take(lrs_pb2.LoadStatsRequest(cluster_stats=[said("agent/a", 5, 0)]))
    assert reported(counted) == {"a": (5, 0, 0)}
    counted.take(lrs_pb2.LoadStatsRequest())
    counted.take_active("a", 0)
    assert (counted.doubtful, reported(counted)) == ([], {})


def test_a_call_of_the_relay_waits_then_is_carried() -> None:
    counted = load()
    with counted.call("a") as call, counted.call("a"):
        assert reported(counted) == {"a": (0, 2, 2)}
        call.carried()
        assert reported(counted) == {"a": (1, 0, 1)}
        call.waits()
        assert reported(counted) == {"a": (0, 0, 2)}
        call.carried()
    assert reported(counted) == {}
    with counted.call("b"):
        pass
    assert reported(counted) == {"b": (0, 1, 0)}
