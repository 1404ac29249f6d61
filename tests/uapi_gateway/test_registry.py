"""The directory: names, leases, and who hears of what."""

from dataclasses import replace
from typing import Any

import pytest
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as proto
from agentruntime.errors import AgentNotFound, AlreadyExists, LeaseNotFound
from google.protobuf import duration_pb2

from uapi_gateway.registry import Agent, CachePolicy, Endpoint, Keeping, Registry, Traffic, from_deployment

NOW = 1_000_000.0


def agent(agent_id: str, *workers: str, ready: bool = True, **changes: Any) -> Agent:
    endpoints = tuple(Endpoint(f"unix:/{w}", ready=ready, worker_id=w) for w in workers)
    return Agent(**{"agent_id": agent_id, "services": ("s.S",), "endpoints": endpoints, **changes})


def outside(agent_id: str, **changes: Any) -> Agent:
    return agent(agent_id, endpoints=(Endpoint("localhost:1", ready=True),), **changes)


def test_only_ready_workers_are_ready_and_ended_ones_are_gone() -> None:
    states = {
        "a-01": pool.WORKER_STATE_READY,
        "a-02": pool.WORKER_STATE_DRAINING,
        "a-03": pool.WORKER_STATE_STOPPED,
        "a-04": pool.WORKER_STATE_FAILED,
        "a-05": pool.WORKER_STATE_STARTING,
        "a-06": pool.WORKER_STATE_UNHEALTHY,
    }
    workers = [
        pool.Worker(worker_id=name, state=state, address=f"unix:/{name}", reason="exit status 1")
        for name, state in states.items()
    ]
    known = from_deployment(pool.Deployment(agent="a", workers=workers, replicas=4))
    assert [e.worker_id for e in known.endpoints] == ["a-01", "a-02", "a-04", "a-05", "a-06"]
    assert [e.worker_id for e in known.endpoints if e.ready] == ["a-01"]
    assert "worker a-04 is failed: exit status 1" in [e.reason for e in known.endpoints]


def test_why_a_worker_ended_is_known_until_it_is_started_again() -> None:
    worker = pool.Worker(worker_id="a-01", state=pool.WORKER_STATE_FAILED, reason="exit status 1", last_traceback="T")
    (failed,) = from_deployment(pool.Deployment(agent="a", workers=[worker])).endpoints
    worker.state = pool.WORKER_STATE_STARTING
    (started,) = from_deployment(pool.Deployment(agent="a", workers=[worker])).endpoints
    assert [(e.failure, e.traceback) for e in (failed, started)] == [("exit status 1", "T"), ("", "")]


def test_how_long_conversations_are_kept() -> None:
    said = pool.Conversations(ttl=duration_pb2.Duration(seconds=90), max_events=5, max_bytes=7)
    known = from_deployment(pool.Deployment(agent="a", settings=pool.AgentSettings(conversations=said)))
    assert known.keeping == Keeping(90.0, 5, 7)
    assert from_deployment(pool.Deployment(agent="a")).keeping == Keeping()


def test_workers_that_are_to_come_have_their_names() -> None:
    workers = [pool.Worker(worker_id="a-02", state=pool.WORKER_STATE_READY, address="unix:/2")]
    known = from_deployment(pool.Deployment(agent="a", workers=workers, replicas=3, asleep=True))
    assert [(e.worker_id, e.ready) for e in known.endpoints] == [("a-02", False), ("a-01", False), ("a-03", False)]
    assert [e.worker_id for e in known.info().endpoints] == ["a-02"]
    assert known.reason.startswith("asleep")
    registry = Registry()
    registry.put_pool_agent(known)
    assert registry.require("a-03").agent.asleep
    assert not from_deployment(pool.Deployment(agent="a", replicas=3, stopped=True)).endpoints
    workers[0].state = pool.WORKER_STATE_DRAINING
    known = from_deployment(pool.Deployment(agent="a", workers=workers, replicas=1, asleep=True))
    assert [e.worker_id for e in known.endpoints] == ["a-02", "a-01"]


def test_what_a_deployment_does_not_say_has_its_default() -> None:
    known = from_deployment(pool.Deployment(agent="a", workers=[pool.Worker(state=pool.WORKER_STATE_READY)]))
    assert known.traffic == Traffic(pool.LOAD_BALANCER_LEAST_REQUEST, 0)
    assert (known.cache, known.queue, known.asleep, known.endpoints[0].weight) == (None, 1024, False, 100)


def test_settings_of_a_deployment() -> None:
    settings = pool.AgentSettings(
        serving=pool.Serving(queue=7),
        traffic=pool.Traffic(load_balancer=pool.LOAD_BALANCER_STICKY, failure_threshold=5),
        cache=pool.Cache(max_bytes=1000, ttl=duration_pb2.Duration(seconds=1, nanos=500_000_000)),
    )
    workers = [pool.Worker(worker_id="a-01", state=pool.WORKER_STATE_READY, weight=40, revision=4)]
    known = from_deployment(
        pool.Deployment(agent="a", asleep=True, revision=3, status="s", settings=settings, workers=workers)
    )
    assert known.traffic == Traffic(pool.LOAD_BALANCER_STICKY, 5)
    assert (known.cache, known.queue) == (CachePolicy(1000, 1.5), 7)
    assert (known.asleep, known.revision, known.status) == (True, 3, "s")
    assert (known.endpoints[0].weight, known.endpoints[0].revision) == (40, 4)
    # It falls asleep: its workers finish their calls and get no more.
    assert not known.ready
    settings.cache.ClearField("ttl")
    assert from_deployment(pool.Deployment(settings=settings)).cache == CachePolicy(1000, 300)


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
