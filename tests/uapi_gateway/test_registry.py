"""The directory: names, leases, and who hears of what."""

from dataclasses import replace
from typing import Any

import pytest
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as proto
from agentruntime.errors import AgentNotFound, AlreadyExists, LeaseNotFound

from uapi_gateway.registry import Agent, Endpoint, Registry

NOW = 1_000_000.0


def agent(agent_id: str, *workers: str, ready: bool = True, **changes: Any) -> Agent:
    endpoints = tuple(Endpoint(f"unix:/{w}", ready=ready, worker_id=w) for w in workers)
    return Agent(**{"agent_id": agent_id, "services": ("s.S",), "endpoints": endpoints, **changes})


def outside(agent_id: str, **changes: Any) -> Agent:
    return agent(agent_id, endpoints=(Endpoint("localhost:1", ready=True),), **changes)


def test_an_exact_agent_id_wins_over_a_worker() -> None:
    registry = Registry()
    registry.register(outside("a-01"), 30, NOW)
    registry.put_pool_agent(agent("a", "a-01", "a-02"))
    found = registry.require("a-01")
    assert found.agent.agent_id == "a-01"
    registry.deregister("a-01")
    found = registry.require("a-01")
    assert (found.agent.agent_id, [e.worker_id for e in found.endpoints]) == ("a", ["a-01"])
    assert len(registry.require("a").endpoints) == 2
    with pytest.raises(AgentNotFound, match="agent 'b' not found"):
        registry.require("b")


@pytest.mark.parametrize("name", ["a", "a-01"])
def test_names_of_the_pool_cannot_be_registered(name: str) -> None:
    registry = Registry()
    registry.put_pool_agent(agent("a", "a-01"))
    with pytest.raises(AlreadyExists, match=f"named '{name}'"):
        registry.register(outside(name), 30, NOW)


def test_a_lease_is_renewed_and_runs_out() -> None:
    registry = Registry()
    entered = registry.register(outside("x"), 30, NOW)
    assert entered.lease is not None
    assert registry.expire(NOW + 29) == []
    assert registry.keep_alive(entered.lease.lease_id, NOW + 29).expires_at == NOW + 59
    assert registry.expire(NOW + 58) == []
    with pytest.raises(LeaseNotFound):
        registry.keep_alive(entered.lease.lease_id, NOW + 60)
    assert registry.expire(NOW + 59) == ["x"]
    with pytest.raises(LeaseNotFound):
        registry.keep_alive(entered.lease.lease_id, NOW + 59)
    assert registry.find("x") is None


def test_registering_again_replaces_the_data_and_keeps_the_lease_id() -> None:
    registry = Registry()
    first = registry.register(outside("x"), 30, NOW)
    second = registry.register(outside("x", capabilities=("c",)), 60, NOW + 5)
    assert first.lease
    assert second.lease
    assert (second.lease.lease_id, second.lease.expires_at) == (first.lease.lease_id, NOW + 65)
    assert registry.require("x").agent.capabilities == ("c",)


def test_restored_agents_get_time_to_renew() -> None:
    before = Registry().register(outside("x"), 30, NOW)
    registry = Registry()
    registry.restore(before, NOW + 3600)
    assert registry.expire(NOW + 3629) == []
    assert registry.expire(NOW + 3630) == ["x"]


def test_listeners_hear_of_changes_only() -> None:
    heard: list[str] = []
    registry = Registry(listeners=[heard.append])
    registry.put_pool_agent(agent("a", "a-01"))
    registry.put_pool_agent(agent("a", "a-01"))
    registry.put_pool_agent(agent("a", "a-01", ready=False))
    registry.remove_pool_agent("b")
    registry.remove_pool_agent("a")
    entered = registry.register(outside("x"), 30, NOW)
    assert entered.lease
    registry.keep_alive(entered.lease.lease_id, NOW)
    (endpoint,) = entered.endpoints
    registry.set_endpoint("x", endpoint, endpoint)
    counted, ill = replace(endpoint, failures=1), replace(endpoint, ready=False)
    registry.set_endpoint("x", endpoint, counted)
    assert heard == ["a", "a", "a", "x"]
    registry.set_endpoint("x", counted, ill)
    registry.set_endpoint("x", endpoint, replace(endpoint, reason="of a registration that is no more"))
    registry.set_endpoint("gone", endpoint, ill)
    assert heard == ["a", "a", "a", "x", "x"]


def test_what_a_new_pool_does_not_name_is_gone() -> None:
    registry = Registry()
    for name in ("a", "b", "c"):
        registry.put_pool_agent(agent(name))
    registry.register(outside("x"), 30, NOW)
    assert registry.keep_pool_agents({"b"}) == ["a", "c"]
    assert [known.agent_id for known in registry.agents()] == ["b", "x"]


def test_stopped_agents_serve_only_where_nobody_else_does() -> None:
    registry = Registry()
    registry.put_pool_agent(agent("a", stopped=True))
    assert [known.agent_id for known in registry.serving("s.S")] == ["a"]
    registry.put_pool_agent(agent("b"))
    assert [known.agent_id for known in registry.serving("s.S")] == ["b"]
    assert registry.serving("s.T") == []


@pytest.mark.parametrize(
    ("known", "state", "reason"),
    [
        (agent("a", "a-01"), proto.AGENT_STATE_READY, ""),
        (agent("a", stopped=True), proto.AGENT_STATE_STOPPED, "stopped by an operator"),
        (agent("a", replicas=0), proto.AGENT_STATE_UNAVAILABLE, "it has 0 replicas"),
        (agent("a", asleep=True), proto.AGENT_STATE_ASLEEP, "asleep; the next call wakes it"),
        (
            agent("a", asleep=True, status="no room"),
            proto.AGENT_STATE_ASLEEP,
            "asleep; the next call wakes it (no room)",
        ),
        (agent("a"), proto.AGENT_STATE_UNAVAILABLE, "no worker is ready yet"),
    ],
)
def test_states(known: Agent, state: int, reason: str) -> None:
    info = known.info()
    assert (info.state, info.reason, info.source) == (state, reason, proto.AGENT_SOURCE_POOL)


def test_info_of_a_registered_agent() -> None:
    info = Registry().register(outside("x"), 30, NOW).info()
    assert info.source == proto.AGENT_SOURCE_REGISTERED
    assert info.lease_expires_at.seconds == NOW + 30
