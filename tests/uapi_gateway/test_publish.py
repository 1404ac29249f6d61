"""The registry as Envoy's resources."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from envoy.config.endpoint.v3 import endpoint_pb2

from tests.uapi_gateway.test_registry import NOW, agent, outside
from uapi_gateway.outward import Outward
from uapi_gateway.publish import Publisher
from uapi_gateway.registry import CachePolicy, Endpoint, Registry, Traffic
from uapi_gateway.xds.cache import Cache
from uapi_gateway.xds.resources import CLUSTER, ENDPOINTS, ROUTE


def published(registry: Registry) -> Cache:
    cache = Cache()
    Publisher(registry, cache, relay=Path("/relay"), hold=Path("/hold"), outward=Outward()).publish_all()
    return cache


def paths(cache: Cache, name: str, prefix: str = "agent") -> list[list[str]]:
    """Socket paths of a cluster by priority."""
    resource = cache.get(ENDPOINTS, f"{prefix}/{name}")
    assert resource is not None
    message: Any = endpoint_pb2.ClusterLoadAssignment.FromString(resource.body.value)
    return [[e.endpoint.address.pipe.path for e in place.lb_endpoints] for place in message.endpoints]


def test_agents_and_workers_come_and_go() -> None:
    registry = Registry()
    cache = published(registry)
    registry.put_pool_agent(agent("a", "a-01", "a-02"))
    assert set(cache.names(CLUSTER)) == {"agent/a", "agent/a-01", "agent/a-02"}
    assert paths(cache, "a") == [["/a-01", "/a-02"], ["/hold"]]
    assert paths(cache, "a-02") == [["/a-02"], ["/hold"]]
    registry.put_pool_agent(agent("a", "a-01", ready=False))
    assert set(cache.names(CLUSTER)) == {"agent/a", "agent/a-01"}
    assert paths(cache, "a") == [[], ["/hold"]]
    registry.remove_pool_agent("a")
    assert set(cache.names(CLUSTER)) == set(cache.names(ENDPOINTS)) == set()


def test_an_agent_that_was_there_from_the_start_leaves_no_route() -> None:
    registry = Registry()
    registry.put_pool_agent(replace(agent("a"), services=("s.S",)))
    cache = published(registry)
    before = cache.get(ROUTE, "tcp")
    registry.remove_pool_agent("a")
    assert before is not None
    assert cache.get(ROUTE, "tcp") != before


def test_calls_that_a_cache_may_answer_go_to_the_relay_and_to_workers_while_it_is_away() -> None:
    registry = Registry()
    cache = published(registry)
    registry.put_pool_agent(agent("a", "a-01", cache=CachePolicy(1000)))
    assert set(cache.names(CLUSTER)) == {"agent/a", "agent/a-01", "cached/a"}
    assert paths(cache, "a", "cached") == [["/relay"], ["/a-01"], ["/hold"]]
    # It stays without the cache, with what Envoy has counted there.
    registry.put_pool_agent(agent("a"))
    assert paths(cache, "a", "cached") == [["/relay"], [], ["/hold"]]
    registry.put_pool_agent(agent("b", cache=CachePolicy(1000), idempotent=False))
    assert "cached/b" not in set(cache.names(CLUSTER))
    registry.remove_pool_agent("b")
    registry.remove_pool_agent("a")
    assert set(cache.names(CLUSTER)) == set(cache.names(ENDPOINTS)) == set()


def test_an_agent_whose_calls_may_not_be_repeated_is_not_reached_by_its_name_alone() -> None:
    registry = Registry()
    cache = published(registry)
    registry.put_pool_agent(agent("a", "a-01", idempotent=False))
    assert set(cache.names(CLUSTER)) == set(cache.names(ENDPOINTS)) == {"once/a", "once/a-01"}
    registry.put_pool_agent(agent("a", "a-01"))
    assert set(cache.names(CLUSTER)) == set(cache.names(ENDPOINTS)) == {"agent/a", "agent/a-01"}
    registry.put_pool_agent(agent("a", "a-01", idempotent=False))
    registry.remove_pool_agent("a")
    assert set(cache.names(CLUSTER)) == set(cache.names(ENDPOINTS)) == set()


def test_a_worker_and_its_successor_share_a_name() -> None:
    registry = Registry()
    cache = published(registry)
    pair = (Endpoint("unix:/old", ready=True, worker_id="a-01"), Endpoint("unix:/new", ready=True, worker_id="a-01"))
    registry.put_pool_agent(agent("a", endpoints=pair))
    assert paths(cache, "a-01") == paths(cache, "a") == [["/new", "/old"], ["/hold"]]
    registry.put_pool_agent(agent("a", endpoints=(replace(pair[0], ready=False), pair[1])))
    assert paths(cache, "a-01") == [["/new"], ["/hold"]]


def test_policies_reach_clusters_and_weights_only_where_they_count() -> None:
    registry = Registry()
    cache = published(registry)
    light = (Endpoint("unix:/w", ready=True, worker_id="a-01", weight=7),)

    def versions(traffic: Traffic) -> tuple[str, str]:
        registry.put_pool_agent(agent("a", endpoints=light, traffic=traffic))
        cluster, endpoints = cache.get(CLUSTER, "agent/a"), cache.get(ENDPOINTS, "agent/a")
        assert cluster is not None
        assert endpoints is not None
        return cluster.version, endpoints.version

    least = versions(Traffic())
    by_health = versions(Traffic(pool.LOAD_BALANCER_HEALTH_BASED))
    # Only the endpoints change: a changed cluster would have to connect anew.
    assert by_health[0] == least[0]
    assert by_health[1] != least[1]
    assert versions(Traffic(pool.LOAD_BALANCER_STICKY))[0] != least[0]
    assert versions(Traffic(failure_threshold=5))[0] != least[0]


def test_what_was_there_before_is_published_at_once() -> None:
    registry = Registry()
    registry.put_pool_agent(agent("a", "a-01"))
    cache = published(registry)
    assert paths(cache, "a") == [["/a-01"], ["/hold"]]
    assert set(cache.names(ROUTE)) == {"tcp", "unix", "hold", "inner", "calls"}


def test_a_registered_id_that_is_a_workers_name_wins_and_gives_it_back() -> None:
    registry = Registry()
    cache = published(registry)
    registry.register(outside("a-01"), 30, NOW)
    registry.put_pool_agent(agent("a", "a-01"))
    assert paths(cache, "a-01")[0] == [""]  # a TCP address, the registered agent's
    registry.deregister("a-01")
    assert paths(cache, "a-01") == [["/a-01"], ["/hold"]]
    registry.remove_pool_agent("a")
    assert set(cache.names(CLUSTER)) == set()


def test_readiness_changes_no_route() -> None:
    registry = Registry()
    cache = published(registry)
    registry.put_pool_agent(agent("a", "a-01"))
    before = cache.get(ROUTE, "tcp")
    registry.put_pool_agent(agent("a", "a-01", ready=False))
    assert cache.get(ROUTE, "tcp") is before
    registry.put_pool_agent(agent("b", "b-01", services=("t.T",)))
    assert cache.get(ROUTE, "tcp") is not before


def test_a_new_agent_changes_the_routes_of_system_calls_alone() -> None:
    registry = Registry()
    for name in ("a", "b"):
        registry.put_pool_agent(agent(name, f"{name}-01"))
    cache = published(registry)

    def versions() -> dict[str, str]:
        return {name: found.version for name in cache.names(ROUTE) if (found := cache.get(ROUTE, name))}

    before = versions()
    registry.put_pool_agent(agent("c", "c-01"))
    after = versions()
    assert {name for name in after if after[name] != before[name]} == {"calls"}
