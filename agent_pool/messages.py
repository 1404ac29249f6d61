"""The pool's things as messages of the protos. Requests, the other way, are read in `requests`."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, TypeVar

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as conversations_pb
from agentruntime._proto.uapi.v1 import image_service_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from agent_pool import health
from agent_pool.asked import (
    AskedPermissions,
    Compression,
    FailureAction,
    LoadBalancer,
    LogFormat,
    Mode,
    OnWorkerLost,
    Permissions,
    RestartMode,
    SecurityContext,
    WhenBusy,
    spoken,
)
from agent_pool.deployment import Deployment
from agent_pool.drivers.base import Enforcement, Stats
from agent_pool.images.layout import StoredImage
from agent_pool.ledger import Capacity
from agent_pool.lifecycle import State
from agent_pool.logs.lines import Line
from agent_pool.resources import Resources
from agent_pool.revision import Spec
from agent_pool.usage import Rates, Traffic
from agent_pool.worker import Worker

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
NETWORKS: Final = {
    pb.NETWORK_MODE_UNSPECIFIED: "",
    pb.NETWORK_MODE_ISOLATED: "isolated",
    pb.NETWORK_MODE_HOST: "host",
}
FAILURE_ACTIONS: Final[dict["pb.HealthFailureAction.ValueType", FailureAction]] = {
    pb.HEALTH_FAILURE_ACTION_RESTART: "restart",
    pb.HEALTH_FAILURE_ACTION_STOP: "stop",
    pb.HEALTH_FAILURE_ACTION_IGNORE: "ignore",
}
RESTARTS: Final[dict["pb.RestartPolicy.ValueType", RestartMode]] = {
    pb.RESTART_POLICY_ALWAYS: "always",
    pb.RESTART_POLICY_ON_FAILURE: "on-failure",
    pb.RESTART_POLICY_NO: "no",
}
LOAD_BALANCERS: Final[dict["pb.LoadBalancer.ValueType", LoadBalancer]] = {
    pb.LOAD_BALANCER_ROUND_ROBIN: "round-robin",
    pb.LOAD_BALANCER_STICKY: "sticky",
    pb.LOAD_BALANCER_HEALTH_BASED: "health-based",
    pb.LOAD_BALANCER_LEAST_REQUEST: "least-request",
}
COMPRESSIONS: Final[dict["pb.Compression.ValueType", Compression]] = {
    pb.COMPRESSION_NONE: "none",
    pb.COMPRESSION_GZIP: "gzip",
}
MODES: Final[dict["pb.RuntimeMode.ValueType", Mode]] = {
    pb.RUNTIME_MODE_NATIVE: "native",
    pb.RUNTIME_MODE_CONTAINER: "container",
}
SECURITY_CONTEXTS: Final[dict["pb.SecurityContext.ValueType", SecurityContext]] = {
    pb.SECURITY_CONTEXT_DEFAULT: "default",
    pb.SECURITY_CONTEXT_RESTRICTED: "restricted",
}
LOG_FORMATS: Final[dict["pb.LogFormat.ValueType", LogFormat]] = {
    pb.LOG_FORMAT_TEXT: "text",
    pb.LOG_FORMAT_JSON: "json",
}
WHEN_BUSY: Final[dict["conversations_pb.WhenBusy.ValueType", WhenBusy]] = {
    conversations_pb.WHEN_BUSY_QUEUE: "queue",
    conversations_pb.WHEN_BUSY_REJECT: "reject",
    conversations_pb.WHEN_BUSY_INTERRUPT: "interrupt",
}
ON_WORKER_LOST: Final[dict["pb.OnWorkerLost.ValueType", OnWorkerLost]] = {
    pb.ON_WORKER_LOST_RETRY: "retry",
    pb.ON_WORKER_LOST_REPORT: "report",
}


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
        network=_code(NETWORKS, spec.network),
        venv=spec.asked.venv,
        env=spec.env,
        log_level=spec.log_level,
        serving=pb.Serving(
            concurrency=serving.concurrency,
            queue=serving.queue,
            compression=_code(COMPRESSIONS, serving.compression),
            optimize_throughput=serving.optimize_throughput,
            debug=serving.debug,
        ),
        health_check=pb.HealthCheck(
            interval_seconds=checks.interval_s,
            timeout_seconds=checks.timeout_s,
            retries=checks.retries,
            start_timeout_seconds=checks.start_timeout_s,
            failure_action=_code(FAILURE_ACTIONS, checks.failure_action),
        ),
        restart_policy=_code(RESTARTS, policies.restart),
        scaling=pb.Scaling(
            auto_scale=scaling.auto_scale,
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            cpu_threshold_percent=scaling.cpu_threshold_percent,
            target_concurrency=scaling.target_concurrency,
            idle_timeout=_duration(scaling.idle_timeout_s),
        ),
        traffic=pb.Traffic(
            load_balancer=_code(LOAD_BALANCERS, policies.traffic.load_balancer),
            failure_threshold=policies.traffic.failure_threshold,
        ),
        cache=pb.Cache(max_bytes=policies.cache.max_bytes, ttl=_duration(policies.cache.ttl_s)),
        mode=_code(MODES, spec.mode),
        isolation=pb.Isolation(
            security_context=_code(SECURITY_CONTEXTS, spec.isolation.security_context),
            read_only_root=spec.isolation.read_only_root,
            network_limit_bps=spec.isolation.network_limit_bps,
        ),
        log_format=_code(LOG_FORMATS, spec.log_format),
        logging=pb.Logging(
            aggregator=policies.logging.aggregator,
            retention=_duration(policies.logging.retention_s),
            max_bytes=policies.logging.max_bytes,
        ),
        permissions=_permissions(spec.asked.permissions),
        access=pb.Access(
            tls=policies.access.tls,
            keys=policies.access.keys,
            oauth2_client_id=policies.access.oauth2_client_id,
        ),
        conversations=pb.Conversations(
            when_busy=_code(WHEN_BUSY, spec.conversations.when_busy),
            on_worker_lost=_code(ON_WORKER_LOST, spec.conversations.on_worker_lost),
            ttl=_duration(policies.retention.ttl_s),
            max_events=policies.retention.max_events,
            max_bytes=policies.retention.max_bytes,
            idle=_duration(spec.conversations.idle_s),
        ),
    )


def _permissions(of: Permissions | AskedPermissions) -> pb.Permissions:
    return pb.Permissions(**spoken(of))


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
        container_id=str(of.handle.get("container", "")),
    )


def _usage(of: Worker, stats: Stats) -> pb.Usage:
    traffic = None
    if stats.network_received_bytes is not None and stats.network_sent_bytes is not None:
        traffic = Traffic(stats.network_received_bytes, stats.network_sent_bytes)
    rates = of.meter.rates(time.monotonic(), stats.cpu_s, traffic) if of.meter else Rates()
    return pb.Usage(
        cpu_seconds=stats.cpu_s,
        cpu_percent=rates.cpu_percent,
        memory_bytes=stats.memory_bytes,
        memory_peak_bytes=stats.memory_peak_bytes,
        memory_pss_bytes=stats.memory_pss_bytes,
        pids=stats.pids,
        throttled_periods=stats.throttled_periods,
        throttled_seconds=stats.throttled_s,
        network_received_bytes=stats.network_received_bytes,
        network_sent_bytes=stats.network_sent_bytes,
        network_received_rate=rates.received,
        network_sent_rate=rates.sent,
        gpus=[
            pb.GpuUsage(
                index=each.index, utilization_percent=each.utilization_percent, memory_bytes=each.memory_bytes
            )
            for each in stats.gpus
        ],
    )


def deployment(of: Deployment, stats: dict[str, Stats] | None = None) -> pb.Deployment:
    """With its workers' usage, as far as `stats` says it."""
    workers = sorted(of.workers.values(), key=lambda each: (each.number, each.turn))
    return pb.Deployment(
        agent=of.agent,
        image=of.spec.image,
        image_digest=of.spec.image_digest,
        revision=of.spec.number,
        replicas=of.replicas,
        stopped=of.stopped,
        services=of.prepared.services,
        descriptors=of.prepared.descriptors,
        workers=[worker(each, of, (stats or {}).get(each.key)) for each in workers],
        notes=of.notes,
        idempotent=of.spec.program.idempotent,
        asleep=of.asleep,
        settings=settings(of),
        status=of.status or of.log_trouble,
        permissions=_permissions(of.spec.permissions),
    )


def node_resources(of: Capacity) -> pb.NodeResources:
    return pb.NodeResources(cpu_millis=of.cpu_millis, memory_bytes=of.memory_bytes, gpus=len(of.gpus))


def enforcement(of: Enforcement, mode: Mode | None = None) -> pb.Enforcement:
    """Of one mode, or of all."""
    return pb.Enforcement(
        what=of.what,
        enforced=of.enforced,
        detail=of.detail,
        mode=_code(MODES, mode) if mode else pb.RUNTIME_MODE_UNSPECIFIED,
    )


def log_line(of: Line) -> pb.StreamLogsResponse:
    return pb.StreamLogsResponse(
        worker_id=of.worker_id, line=of.text, level=of.level, time=timestamp(of.time_s or 0.0)
    )


def image(of: StoredImage, container_image: str = "") -> image_service_pb2.Image:
    return image_service_pb2.Image(
        reference=of.reference,
        digest=of.digest,
        size_bytes=of.size_bytes,
        created_at=timestamp(of.created_at.timestamp()),
        built_in=of.built_in,
        container_image=container_image,
    )
