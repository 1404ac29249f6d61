"""What a deployment of the pool becomes, and what it becomes of one that says little."""

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from google.protobuf import duration_pb2

from uapi_gateway.deployments import from_deployment
from uapi_gateway.registry import CachePolicy, Keeping, Registry, Traffic


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
