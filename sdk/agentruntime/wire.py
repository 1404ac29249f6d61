"""`RuntimeConfig` as the contract has it: `uapi.v1.AgentSettings`, with what nobody set left out."""

from typing import Any

from google.protobuf.duration_pb2 import Duration

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime._proto.uapi.v1 import conversation_service_pb2
from agentruntime.config import RuntimeConfig
from agentruntime.sections import ConversationsSection, ScalingSection


def agent_settings(config: RuntimeConfig) -> pool_pb2.AgentSettings:
    """The message that says what was set, and nothing else."""
    settings = pool_pb2.AgentSettings(
        network=_enum(pool_pb2.NetworkMode, "NETWORK_MODE", config.network),
        venv=config.venv or "",
        env=config.env,
        log_level=config.log_level or "",
        restart_policy=_enum(pool_pb2.RestartPolicy, "RESTART_POLICY", config.restart_policy),
        mode=_enum(pool_pb2.RuntimeMode, "RUNTIME_MODE", config.mode),
        log_format=_enum(pool_pb2.LogFormat, "LOG_FORMAT", config.logging.format),
    )
    resources, health = config.resources, config.health_check
    _set(
        settings.resources,
        cpu_millis=resources.cpu_millis,
        memory_bytes=resources.memory_bytes,
        cpu_limit_millis=resources.cpu_limit_millis,
        memory_limit_bytes=resources.memory_limit_bytes,
        gpus=resources.gpus,
        pids_limit=resources.pids_limit,
    )
    _set(
        settings.serving,
        concurrency=config.concurrency,
        queue=config.queue,
        compression=_enum(pool_pb2.Compression, "COMPRESSION", config.compression) or None,
        optimize_throughput=config.optimize_throughput,
        debug=config.debug,
    )
    _set(
        settings.health_check,
        interval_seconds=health.interval_s,
        timeout_seconds=health.timeout_s,
        retries=health.retries,
        start_timeout_seconds=health.start_timeout_s,
        failure_action=_enum(pool_pb2.HealthFailureAction, "HEALTH_FAILURE_ACTION", health.failure_action) or None,
    )
    _scaling(settings.scaling, config.scaling)
    balancer = _enum(pool_pb2.LoadBalancer, "LOAD_BALANCER", config.traffic.load_balancer)
    _set(settings.traffic, load_balancer=balancer or None, failure_threshold=config.traffic.threshold)
    if config.cache.enabled is not None or config.cache.size_bytes is not None:
        # A time to live alone says nothing of how much is kept.
        _set(settings.cache, max_bytes=config.cache.max_bytes)
    if config.cache.ttl_s is not None:
        settings.cache.ttl.CopyFrom(duration(config.cache.ttl_s))
    _conversations(settings.conversations, config.conversations)
    isolation, logging = config.isolation, config.logging
    _set(
        settings.isolation,
        security_context=_enum(pool_pb2.SecurityContext, "SECURITY_CONTEXT", isolation.security_context) or None,
        read_only_root=isolation.read_only_root,
        network_limit_bps=isolation.network_limit_bps,
    )
    _set(settings.logging, aggregator=logging.aggregator, max_bytes=logging.max_bytes)
    if logging.retention_s is not None:
        settings.logging.retention.CopyFrom(duration(logging.retention_s))
    if permitted := {name: names for name, names in config.permissions if names}:
        settings.permissions.CopyFrom(pool_pb2.Permissions(**permitted))
    access = config.access
    _set(settings.access, tls=access.tls, oauth2_client_id=access.oauth2_client_id)
    if access.keys:
        settings.access.keys.extend(access.keys)
    return settings


def _scaling(message: pool_pb2.Scaling, section: ScalingSection) -> None:
    _set(
        message,
        auto_scale=section.auto_scale,
        min_replicas=section.min_replicas,
        max_replicas=section.max_replicas,
        cpu_threshold_percent=section.cpu_threshold,
        target_concurrency=section.target_concurrency,
    )
    if section.idle_timeout_s is not None:
        message.idle_timeout.CopyFrom(duration(section.idle_timeout_s))


def _conversations(message: pool_pb2.Conversations, section: ConversationsSection) -> None:
    _set(
        message,
        when_busy=_enum(conversation_service_pb2.WhenBusy, "WHEN_BUSY", section.when_busy) or None,
        on_worker_lost=_enum(pool_pb2.OnWorkerLost, "ON_WORKER_LOST", section.on_worker_lost) or None,
        max_events=section.max_events,
        max_bytes=section.max_bytes,
    )
    if section.ttl_s is not None:
        message.ttl.CopyFrom(duration(section.ttl_s))
    if section.idle_s is not None:
        message.idle.CopyFrom(duration(section.idle_s))


def duration(seconds: float) -> Duration:
    """Seconds as protobuf has them."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def _enum(kind: Any, prefix: str, written: str | None) -> Any:
    """ "round-robin" as LOAD_BALANCER_ROUND_ROBIN; 0 where nothing was written."""
    return kind.Value(f"{prefix}_{written.upper().replace('-', '_')}") if written else 0


def _set(message: Any, **values: float | str | None) -> None:
    """Sets what is not None; a message of which nothing is set stays unset itself."""
    for name, value in values.items():
        if value is not None:
            setattr(message, name, value)
