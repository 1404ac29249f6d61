"""The pool's things as messages of the protos, and requests the other way. The only place that knows both."""

import time
from datetime import UTC, datetime
from typing import Final

from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime._proto.uapi.v1 import image_service_pb2
from agentruntime.log import LEVELS
from google.protobuf.timestamp_pb2 import Timestamp

from agent_pool.deployment import Asked, AskedHealth, Deployment, RunRequest
from agent_pool.drivers.base import Enforcement, Stats
from agent_pool.images.layout import StoredImage
from agent_pool.ledger import Capacity
from agent_pool.lifecycle import State
from agent_pool.logs.lines import Line
from agent_pool.resources import Requested, Resources
from agent_pool.worker import Worker

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
_MOST_REPLICAS = 1000
_LONGEST_ENV_BYTES = 128 * 1024


def run_request(message: pb.RunAgentRequest) -> RunRequest:
    """Reads a RunAgentRequest.

    Raises:
        InvalidArgument: a field has no sensible value.
    """
    if not message.image:
        raise errors.InvalidArgument("name an image to run, like echo:latest")
    if message.replicas > _MOST_REPLICAS:
        raise errors.InvalidArgument(f"{message.replicas} replicas are more than one pool keeps ({_MOST_REPLICAS})")
    replicas = message.replicas if message.HasField("replicas") else None
    return RunRequest(message.image, message.agent, replicas, _asked(message.settings), message.allow_unenforced)


def _asked(message: pb.AgentSettings) -> Asked:
    if message.network not in _NETWORKS:
        raise errors.InvalidArgument(f"{message.network} is not a network mode")
    level = message.log_level.upper()
    if level and level not in LEVELS:
        raise errors.InvalidArgument(f"'{message.log_level}' is not a log level; use {', '.join(LEVELS)}")
    _check_env(dict(message.env))
    return Asked(
        resources=_requested(message.resources),
        health=_asked_health(message.health_check),
        network=_NETWORKS[message.network],
        venv=message.venv,
        env=dict(message.env),
        log_level=level,
    )


def _check_env(env: dict[str, str]) -> None:
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            raise errors.InvalidArgument(f"'{name}' cannot be an environment variable")
    if sum(len(name) + len(value) for name, value in env.items()) > _LONGEST_ENV_BYTES:
        raise errors.InvalidArgument(f"the environment is larger than {_LONGEST_ENV_BYTES} bytes")


def _requested(message: pb.Resources) -> Requested:
    return Requested(**{field.name: value for field, value in message.ListFields()})


def _asked_health(message: pb.HealthCheck) -> AskedHealth:
    given = {field.name.replace("_seconds", "_s"): value for field, value in message.ListFields()}
    for name, value in given.items():
        # Zero, negative and not-a-number alike; a day is longer than any sensible check.
        if not 0 < value <= 86400:
            raise errors.InvalidArgument(f"a health check's {name.removesuffix('_s')} of {value:g} is not sensible")
    return AskedHealth(**given)


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


def worker(of: Worker, deployment: Deployment, stats: Stats | None = None) -> pb.Worker:
    """With its usage, if `stats` says it."""
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
        resources=resources(deployment.spec.resources),
        usage=_usage(of, stats) if stats else None,
        gpus=of.gpus,
        image=deployment.spec.image,
        start_note=deployment.prepared.start_note,
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
        notes=[*of.notes, *of.prepared.degraded],
        idempotent=of.spec.program.idempotent,
        settings=pb.AgentSettings(resources=resources(of.spec.resources)),
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
