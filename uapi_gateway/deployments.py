"""The agents that the pool's deployments are, as the registry has them."""

import itertools

from agentruntime import names
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool

from uapi_gateway.registry import QUEUE, Agent, CachePolicy, Demands, Endpoint, Keeping, Permissions, Traffic

# Worker states in which a worker may still, or again, take calls. The others leave the directory.
_LIVING = frozenset(
    (
        pool.WORKER_STATE_PENDING,
        pool.WORKER_STATE_STARTING,
        pool.WORKER_STATE_READY,
        pool.WORKER_STATE_UNHEALTHY,
        pool.WORKER_STATE_DRAINING,
        pool.WORKER_STATE_FAILED,
    )
)


def from_deployment(deployment: pool.Deployment) -> Agent:
    """The agent that a deployment of the pool is. Settings that it does not say have their defaults."""
    present = tuple(_endpoint(worker, deployment) for worker in deployment.workers if worker.state in _LIVING)
    serving = deployment.settings.serving
    return Agent(
        agent_id=deployment.agent,
        services=tuple(deployment.services),
        endpoints=(*present, *_to_come(deployment)),
        image=deployment.image,
        image_digest=deployment.image_digest,
        stopped=deployment.stopped,
        asleep=deployment.asleep,
        replicas=deployment.replicas,
        revision=deployment.revision,
        status=deployment.status,
        traffic=_traffic(deployment.settings.traffic),
        cache=_cache(deployment.settings.cache),
        queue=serving.queue if serving.HasField("queue") else QUEUE,
        idempotent=deployment.idempotent,
        descriptors=deployment.descriptors,
        permissions=_permissions(deployment),
        demands=demands_of(deployment.settings.access),
        keeping=_keeping(deployment.settings.conversations),
    )


def _permissions(deployment: pool.Deployment) -> Permissions:
    given = {entry.name: tuple(each) for entry, each in deployment.permissions.ListFields()}
    return Permissions(**given, operators_egress=tuple(deployment.settings.permissions.egress))


def demands_of(access: pool.Access) -> Demands:
    """What an agent demands of its callers, as the pool says it."""
    return Demands(access.tls, tuple(access.keys), access.oauth2_client_id)


def _endpoint(worker: pool.Worker, deployment: pool.Deployment) -> Endpoint:
    ready, failed = worker.state == pool.WORKER_STATE_READY, worker.state == pool.WORKER_STATE_FAILED
    return Endpoint(
        address=worker.address,
        # One that falls asleep still has its workers: they finish their calls and get no more.
        ready=ready and bool(worker.address) and not deployment.asleep,
        worker_id=worker.worker_id,
        reason="" if ready else _worker_reason(worker),
        weight=worker.weight or 100,
        revision=worker.revision,
        pid=worker.pid,
        failure=(worker.reason or "of itself") if failed else "",
        traceback=worker.last_traceback if failed else "",
    )


def _to_come(deployment: pool.Deployment) -> tuple[Endpoint, ...]:
    """Workers that are wanted and not there, those of an agent that sleeps above all: a call that names one wakes it.

    The pool gives new workers the lowest numbers that are free.
    """
    if deployment.stopped:
        return ()
    present = {worker.worker_id: worker.state for worker in deployment.workers if worker.state in _LIVING}
    free = (each for n in itertools.count(1) if (each := names.worker_id(deployment.agent, n)) not in present)
    # One that drains is on its way out, but has its name as long as it is there.
    staying = sum(state != pool.WORKER_STATE_DRAINING for state in present.values())
    missing = max(0, deployment.replicas - staying)
    return tuple(Endpoint("", ready=False, worker_id=worker_id) for worker_id in itertools.islice(free, missing))


def _traffic(said: pool.Traffic) -> Traffic:
    return Traffic(said.load_balancer or pool.LOAD_BALANCER_LEAST_REQUEST, said.failure_threshold)


def _cache(said: pool.Cache) -> CachePolicy | None:
    if not said.max_bytes:
        return None
    if not said.HasField("ttl"):
        return CachePolicy(said.max_bytes)
    return CachePolicy(said.max_bytes, said.ttl.ToMicroseconds() / 1e6)


def _keeping(said: pool.Conversations) -> Keeping:
    return Keeping(said.ttl.ToMicroseconds() / 1e6, said.max_events, said.max_bytes)


def _worker_reason(worker: pool.Worker) -> str:
    state = pool.WorkerState.Name(worker.state).removeprefix("WORKER_STATE_").lower()
    return f"worker {worker.worker_id} is {state}" + (f": {worker.reason}" if worker.reason else "")
