"""The registry as Envoy's resources."""

from pathlib import Path
from typing import Any

from envoy.config.endpoint.v3 import endpoint_pb2

from tests.uapi_gateway.test_registry import NOW, agent, outside
from uapi_gateway.publish import Publisher
from uapi_gateway.registry import CachePolicy, Registry
from uapi_gateway.xds.cache import Cache
from uapi_gateway.xds.resources import CLUSTER, ENDPOINTS, ROUTE


def published(registry: Registry) -> Cache:
    cache = Cache()
    Publisher(registry, cache, relay=Path("/relay"), hold=Path("/hold"), token="t").publish_all()
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


def test_calls_that_a_cache_may_answer_go_to_the_relay_and_to_workers_while_it_is_away() -> None:
    registry = Registry()
    cache = published(registry)
    registry.put_pool_agent(agent("a", "a-01", cache=CachePolicy(1000)))
    assert set(cache.names(CLUSTER)) == {"agent/a", "agent/a-01", "cached/a"}
    assert paths(cache, "a", "cached") == [["/relay"], ["/a-01"], ["/hold"]]
    registry.put_pool_agent(agent("a", "a-01", cache=CachePolicy(1000), idempotent=False))
    assert set(cache.names(CLUSTER)) == {"agent/a", "agent/a-01"}
    registry.put_pool_agent(agent("a", cache=CachePolicy(1000)))
    registry.remove_pool_agent("a")
    assert set(cache.names(CLUSTER)) == set(cache.names(ENDPOINTS)) == set()


def test_what_was_there_before_is_published_at_once() -> None:
    registry = Registry()
    registry.put_pool_agent(agent("a", "a-01"))
    cache = published(registry)
    assert paths(cache, "a") == [["/a-01"], ["/hold"]]
    assert set(cache.names(ROUTE)) == {"tcp", "unix", "hold"}


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
