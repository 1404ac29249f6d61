"""The pool's things as messages of the protos, and requests the other way. The only place that knows both."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, TypeVar

from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime._proto.uapi.v1 import image_service_pb2
from agentruntime.log import LEVELS
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from agent_pool import health
from agent_pool.asked import (
    Asked,
    AskedCache,
    AskedHealth,
    AskedPolicies,
    AskedServing,
    AskedTraffic,
    Compression,
    FailureAction,
    LoadBalancer,
    RestartMode,
)
from agent_pool.deployment import DEFAULT_GRACE_S, Deployment, RunRequest
from agent_pool.drivers.base import Enforcement, Stats
from agent_pool.images.layout import StoredImage
from agent_pool.ledger import Capacity
from agent_pool.lifecycle import State
from agent_pool.logs.lines import Line
from agent_pool.resources import Requested, Resources
from agent_pool.revision import Spec
from agent_pool.scaling.policy import AskedScaling
from agent_pool.updates import UpdateRequest
from agent_pool.worker import Worker

Graceful = pb.StopAgentRequest | pb.RestartAgentRequest | pb.UpdateAgentRequest | pb.RollbackAgentRequest
Choice = TypeVar("Choice", bound=str)
Code = TypeVar("Code", bound=int)
STATES: Final = {
    State.PENDING: pb.WORKER_STATE_PENDING,
    State.STARTING: pb.WORKER_STATE_STARTING,
    State.READY: pb.WORKER_STATE_READY,
    State.UNHEALTHY: pb.WORKER_STATE_UNHEALTHY,
    State.DRAINING: pb.WORKER_STATE_DRAINING,
    State.STOPPED: pb.WORKER_STATE_STOPPED,
    State.FAILED: pb.WORKER_STATE_FAILED,
}
_NETWORKS: Final = {
    pb.NETWORK_MODE_UNSPECIFIED: "",
    pb.NETWORK_MODE_ISOLATED: "isolated",
    pb.NETWORK_MODE_HOST: "host",
}
_FAILURE_ACTIONS: Final[dict["pb.HealthFailureAction.ValueType", FailureAction]] = {
    pb.HEALTH_FAILURE_ACTION_RESTART: "restart",
    pb.HEALTH_FAILURE_ACTION_STOP: "stop",
    pb.HEALTH_FAILURE_ACTION_IGNORE: "ignore",
}
_RESTARTS: Final[dict["pb.RestartPolicy.ValueType", RestartMode]] = {
    pb.RESTART_POLICY_ALWAYS: "always",
    pb.RESTART_POLICY_ON_FAILURE: "on-failure",
    pb.RESTART_POLICY_NO: "no",
}
_LOAD_BALANCERS: Final[dict["pb.LoadBalancer.ValueType", LoadBalancer]] = {
    pb.LOAD_BALANCER_ROUND_ROBIN: "round-robin",
    pb.LOAD_BALANCER_STICKY: "sticky",
    pb.LOAD_BALANCER_HEALTH_BASED: "health-based",
    pb.LOAD_BALANCER_LEAST_REQUEST: "least-request",
}
_COMPRESSIONS: Final[dict["pb.Compression.ValueType", Compression]] = {
    pb.COMPRESSION_NONE: "none",
    pb.COMPRESSION_GZIP: "gzip",
}
_MOST_CONCURRENCY = 10_000
_MOST_QUEUE = 100_000
_MOST_FAILURES = 1000
_MOST_REPLICAS = 1000
_LONGEST_GRACE_S = 3600.0
_LONGEST_ENV_BYTES = 128 * 1024


def run_request(message: pb.RunAgentRequest) -> RunRequest:
    """Reads a RunAgentRequest.

    Raises:
        InvalidArgument: a field has no sensible value.
    """
    if not message.image:
        raise errors.InvalidArgument("name an image to run, like echo:latest")
    return RunRequest(
        message.image,
        message.agent,
        replicas(message),
        asked(message.settings),
        asked_policies(message.settings),
        message.allow_unenforced,
    )


def update_request(message: pb.UpdateAgentRequest) -> UpdateRequest:
    """Reads an UpdateAgentRequest.

    Raises:
        InvalidArgument: a field has no sensible value.
    """
    return UpdateRequest(
        message.name,
        message.image,
        asked(message.settings),
        asked_policies(message.settings),
        grace_s(message),
        message.allow_unenforced,
    )


def grace_s(message: Graceful) -> float:
    """The grace period that a request sets, in seconds.

    Raises:
        InvalidArgument: it is negative, or longer than anybody waits.
    """
    if not message.HasField("grace_period"):
        return DEFAULT_GRACE_S
    given_s = message.grace_period.ToNanoseconds() / 1e9
    if not 0 <= given_s <= _LONGEST_GRACE_S:
        raise errors.InvalidArgument(f"a grace period of {given_s:g}s is not between 0 and {_LONGEST_GRACE_S:g}s")
    return given_s


def replicas(message: pb.RunAgentRequest | pb.ScaleAgentRequest) -> int | None:
    """How many workers a request wants, if it says.

    Raises:
        InvalidArgument: more than one pool keeps.
    """
    if message.replicas > _MOST_REPLICAS:
        raise errors.InvalidArgument(f"{message.replicas} replicas are more than one pool keeps ({_MOST_REPLICAS})")
    return message.replicas if message.HasField("replicas") else None


def asked(message: pb.AgentSettings) -> Asked:
    """Reads the settings of a revision.

    Raises:
        InvalidArgument: one has no sensible value.
    """
    level = message.log_level.upper()
    if level and level not in LEVELS:
        raise errors.InvalidArgument(f"'{message.log_level}' is not a log level; use {', '.join(LEVELS)}")
    _check_env(dict(message.env))
    return Asked(
        resources=requested(message.resources),
        network=_chosen(_NETWORKS, message.network, "network mode") or "",
        venv=message.venv,
        env=dict(message.env),
        log_level=level,
        serving=_asked_serving(message.serving),
    )


def asked_policies(message: pb.AgentSettings) -> AskedPolicies:
    """Reads the settings that are the agent's own.

    Raises:
        InvalidArgument: one has no sensible value.
    """
    return AskedPolicies(
        health=_asked_health(message.health_check),
        restart=_chosen(_RESTARTS, message.restart_policy, "restart policy"),
        scaling=asked_scaling(message.scaling),
        traffic=_asked_traffic(message.traffic),
        cache=_asked_cache(message.cache),
    )


def asked_scaling(message: pb.Scaling) -> AskedScaling:
    """Whether the values make sense together is seen when they are put in force."""
    given = {field.name: value for field, value in message.ListFields()}
    if "idle_timeout" in given:
        given["idle_timeout_s"] = given.pop("idle_timeout").ToNanoseconds() / 1e9
    return AskedScaling(**given)


def _asked_serving(message: pb.Serving) -> AskedServing:
    concurrency = message.concurrency if message.HasField("concurrency") else None
    queue = message.queue if message.HasField("queue") else None
    if concurrency is not None and not 1 <= concurrency <= _MOST_CONCURRENCY:
        raise errors.InvalidArgument(f"a concurrency of {concurrency} is not between 1 and {_MOST_CONCURRENCY} calls")
    if queue is not None and queue > _MOST_QUEUE:
        raise errors.InvalidArgument(f"a queue of {queue} calls is longer than {_MOST_QUEUE}")
    return AskedServing(
        concurrency=concurrency,
        queue=queue,
        compression=_chosen(_COMPRESSIONS, message.compression, "compression"),
        optimize_throughput=message.optimize_throughput if message.HasField("optimize_throughput") else None,
        debug=message.debug if message.HasField("debug") else None,
    )


def _asked_traffic(message: pb.Traffic) -> AskedTraffic:
    threshold = message.failure_threshold if message.HasField("failure_threshold") else None
    if threshold is not None and threshold > _MOST_FAILURES:
        raise errors.InvalidArgument(f"a failure threshold of {threshold} is above {_MOST_FAILURES}")
    return AskedTraffic(_chosen(_LOAD_BALANCERS, message.load_balancer, "load balancer"), threshold)


def _asked_cache(message: pb.Cache) -> AskedCache:
    ttl_s = message.ttl.ToNanoseconds() / 1e9 if message.HasField("ttl") else None
    if ttl_s is not None and ttl_s <= 0:
        raise errors.InvalidArgument(f"a cache that keeps answers for {ttl_s:g}s keeps none; leave it out instead")
    return AskedCache(message.max_bytes if message.HasField("max_bytes") else None, ttl_s)


def _chosen(choices: Mapping[Code, Choice], value: Code, what: str) -> Choice | None:
    """What an enum's value stands for; None for its zero, which says nothing."""
    if value and value not in choices:
        raise errors.InvalidArgument(f"{value} is not a {what}")
    return choices.get(value)


def _check_env(env: dict[str, str]) -> None:
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            raise errors.InvalidArgument(f"'{name}' cannot be an environment variable")
    if sum(len(name) + len(value) for name, value in env.items()) > _LONGEST_ENV_BYTES:
        raise errors.InvalidArgument(f"the environment is larger than {_LONGEST_ENV_BYTES} bytes")


def requested(message: pb.Resources) -> Requested:
    """What a request says of resources."""
    return Requested(**{field.name: value for field, value in message.ListFields()})


def _asked_health(message: pb.HealthCheck) -> AskedHealth:
    action = _chosen(_FAILURE_ACTIONS, message.failure_action, "failure action")
    given = {
        field.name.replace("_seconds", "_s"): value
        for field, value in message.ListFields()
        if field.name != "failure_action"
    }
    for name, value in given.items():
        # Zero, negative and not-a-number alike; a day is longer than any sensible check.
        if not 0 < value <= 86400:
            raise errors.InvalidArgument(f"a health check's {name.removesuffix('_s')} of {value:g} is not sensible")
    return AskedHealth(failure_action=action, **given)


def timestamp(seconds: float) -> Timestamp | None:
    """None for never."""
    if not seconds:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(datetime.fromtimestamp(seconds, UTC))
    return stamp


def resources(of: Resources) -> pb.Resources:
    return pb.Resources(
        cpu_millis=of.cpu_millis,
        memory_bytes=of.memory_bytes,
        cpu_limit_millis=of.cpu_limit_millis,
        memory_limit_bytes=of.memory_limit_bytes,
        gpus=of.gpus,
        pids_limit=of.pids_limit,
    )


def settings(of: Deployment) -> pb.AgentSettings:
    """All that is in force."""
    spec, policies = of.spec, of.policies
    checks, scaling, serving = policies.health, policies.scaling, spec.serving
    return pb.AgentSettings(
        resources=resources(spec.resources),
        network=_code(_NETWORKS, spec.network),
        venv=spec.asked.venv,
        env=spec.env,
        log_level=spec.log_level,
        serving=pb.Serving(
            concurrency=serving.concurrency,
            queue=serving.queue,
            compression=_code(_COMPRESSIONS, serving.compression),
            optimize_throughput=serving.optimize_throughput,
            debug=serving.debug,
        ),
        health_check=pb.HealthCheck(
            interval_seconds=checks.interval_s,
            timeout_seconds=checks.timeout_s,
            retries=checks.retries,
            start_timeout_seconds=checks.start_timeout_s,
            failure_action=_code(_FAILURE_ACTIONS, checks.failure_action),
        ),
        restart_policy=_code(_RESTARTS, policies.restart),
        scaling=pb.Scaling(
            auto_scale=scaling.auto_scale,
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            cpu_threshold_percent=scaling.cpu_threshold_percent,
            target_concurrency=scaling.target_concurrency,
            idle_timeout=_duration(scaling.idle_timeout_s),
        ),
        traffic=pb.Traffic(
            load_balancer=_code(_LOAD_BALANCERS, policies.traffic.load_balancer),
            failure_threshold=policies.traffic.failure_threshold,
        ),
        cache=pb.Cache(max_bytes=policies.cache.max_bytes, ttl=_duration(policies.cache.ttl_s)),
    )


def _code(choices: Mapping[Code, str], name: str) -> Code:
    """The enum's value for a name."""
    return next(code for code, each in choices.items() if each == name)


def _duration(seconds: float) -> Duration:
    made = Duration()
    made.FromNanoseconds(round(seconds * 1e9))
    return made


def revision(of: Spec, deployment: Deployment) -> pb.Revision:
    return pb.Revision(
        number=of.number,
        image=of.image,
        image_digest=of.image_digest,
        created_at=timestamp(of.created_at_s),
        cause=of.cause,
        ready_workers=sum(worker.revision == of.number for worker in deployment.ready()),
        current=of.number == deployment.current,
        failure=of.failure,
        resources=resources(of.resources),
    )


def worker(of: Worker, deployment: Deployment, stats: Stats | None = None) -> pb.Worker:
    """With its usage, if `stats` says it."""
    spec = deployment.spec_of(of)
    return pb.Worker(
        worker_id=of.worker_id,
        agent=of.agent,
        revision=of.revision,
        state=STATES[of.state],
        pid=of.pid,
        restarts=of.restarts,
        reason=of.reason,
        address=of.address,
        started_at=timestamp(of.started_at_s),
        ready_at=timestamp(of.ready_at_s),
        resources=resources(spec.resources),
        usage=_usage(of, stats) if stats else None,
        gpus=of.gpus,
        image=spec.image,
        start_note=spec.prepared.start_note,
        crash_loop=of.crash_loop,
        last_traceback=of.last_traceback,
        retry_at=timestamp(of.retry_at_s),
        lag_seconds=of.lag_s,
        weight=health.weight(of.lag_s),
    )


def _usage(of: Worker, stats: Stats) -> pb.Usage:
    percent = of.meter.percent(time.monotonic(), stats.cpu_s) if of.meter else 0.0
    return pb.Usage(
        cpu_seconds=stats.cpu_s,
        cpu_percent=percent,
        memory_bytes=stats.memory_bytes,
        memory_peak_bytes=stats.memory_peak_bytes,
        memory_pss_bytes=stats.memory_pss_bytes,
        pids=stats.pids,
        throttled_periods=stats.throttled_periods,
        throttled_seconds=stats.throttled_s,
    )


def deployment(of: Deployment, stats: dict[str, Stats] | None = None) -> pb.Deployment:
    """With its workers' usage, as far as `stats` says it."""
    workers = sorted(of.workers.values(), key=lambda each: each.number)
    return pb.Deployment(
        agent=of.agent,
        image=of.spec.image,
        image_digest=of.spec.image_digest,
        revision=of.spec.number,
        replicas=of.replicas,
        stopped=of.stopped,
        services=of.prepared.services,
        descriptors=of.prepared.descriptors,
        workers=[worker(each, of, (stats or {}).get(each.worker_id)) for each in workers],
        notes=of.notes,
        idempotent=of.spec.program.idempotent,
        asleep=of.asleep,
        settings=settings(of),
        status=of.status,
    )


def node_resources(of: Capacity) -> pb.NodeResources:
    return pb.NodeResources(cpu_millis=of.cpu_millis, memory_bytes=of.memory_bytes, gpus=len(of.gpus))


def enforcement(of: Enforcement) -> pb.Enforcement:
    return pb.Enforcement(what=of.what, enforced=of.enforced, detail=of.detail)


def log_line(of: Line) -> pb.StreamLogsResponse:
    return pb.StreamLogsResponse(
        worker_id=of.worker_id, line=of.text, level=of.level, time=timestamp(of.time_s or 0.0)
    )


def image(of: StoredImage) -> image_service_pb2.Image:
    return image_service_pb2.Image(
        reference=of.reference,
        digest=of.digest,
        size_bytes=of.size_bytes,
        created_at=timestamp(of.created_at.timestamp()),
        built_in=of.built_in,
    )
