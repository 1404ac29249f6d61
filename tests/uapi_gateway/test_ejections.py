"""What Envoy's outlier detection says, as the workers it is about."""

import json
from pathlib import Path

import pytest

from tests.uapi_gateway.test_registry import agent
from tests.waiting import eventually
from uapi_gateway.ejections import Ejections, hearing
from uapi_gateway.registry import Registry

NOW = 1000.0


def event(cluster: str, address: str, action: str = "EJECT", kind: str = "CONSECUTIVE_5XX") -> str:
    content = {"cluster_name": cluster, "upstream_url": address, "action": action, "type": kind, "enforced": True}
    return json.dumps(content)


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    made.put_pool_agent(agent("a", "a-01", "a-02"))
    return made


def test_ejected_workers_are_named_once_whichever_cluster_it_was(registry: Registry) -> None:
    ejections = Ejections(registry)
    heard: list[bool] = []
    ejections.listeners.append(lambda: heard.append(True))
    ejections.take(event("agent/a", "/a-02", kind="CONSECUTIVE_LOCAL_ORIGIN_FAILURE"), NOW)
    ejections.take(event("agent/a-01", "/a-01"), NOW)
    ejections.take(event("agent/a", "/relay"), NOW)
    ejections.take(event("pool", "/pool"), NOW)
    ejections.take(event("agent/a", "/a-01").replace("true", "false"), NOW)
    assert len(heard) == 2
    assert ejections.workers() == ["a-01", "a-02"]
    ejections.take(event("agent/a-01", "/a-01", "UNEJECT"), NOW)
    assert ejections.workers() == []


def test_a_circuit_is_open_when_it_took_out_all_that_are_ready(registry: Registry) -> None:
    ejections = Ejections(registry)
    target = registry.require("a")
    ejections.take(event("agent/a", "/a-01"), NOW)
    assert not ejections.circuit_open(target, NOW)
    ejections.take(event("agent/a", "/a-02", kind="CONSECUTIVE_LOCAL_ORIGIN_FAILURE"), NOW)
    assert not ejections.circuit_open(target, NOW)
    ejections.take(event("agent/a", "/a-02"), NOW)
    assert ejections.circuit_open(target, NOW)
    # A worker's own cluster counts by itself.
    assert not ejections.circuit_open(registry.require("a-01"), NOW)
    # An Envoy that was killed says no more.
    assert not ejections.circuit_open(target, NOW + 60)
    ejections.take(event("agent/a", "/a-02", "UNEJECT"), NOW)
    assert not ejections.circuit_open(target, NOW)


def test_a_worker_that_left_the_endpoints_comes_back_without_a_past(registry: Registry) -> None:
    ejections = Ejections(registry)
    registry.put_pool_agent(agent("a", "a-01"))
    for name in ("a", "a-01"):
        ejections.take(event(f"agent/{name}", "/a-01"), NOW)
        assert ejections.circuit_open(registry.require(name), NOW)
    registry.put_pool_agent(agent("a", "a-01", ready=False))
    registry.put_pool_agent(agent("a", "a-01"))
    assert not ejections.circuit_open(registry.require("a"), NOW)
    assert not ejections.circuit_open(registry.require("a-01"), NOW)
    assert not ejections.circuit_open(Registry([], {"b": agent("b")}).require("b"), NOW)


async def test_what_envoy_writes_is_heard_and_survives_a_gateway(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    first, second = Ejections(registry), Ejections(registry)
    with hearing(first, path):
        # As Envoy opens it: for writing alone, which must not wait.
        envoy = path.open("ab", buffering=0)
        envoy.write((event("agent/a", "/a-01") + "\nno event\n" + event("agent/a", "/a-02")[:20]).encode())
        await eventually(lambda: first.workers() == ["a-01"])
        envoy.write((event("agent/a", "/a-02")[20:] + "\n").encode())
        await eventually(lambda: first.workers() == ["a-02"])
    with pytest.raises(BrokenPipeError):
        envoy.write(b"nobody hears\n")
    with hearing(second, path):
        envoy.write((event("agent/a", "/a-02") + "\n").encode())
        await eventually(lambda: second.workers() == ["a-02"])
    envoy.close()
