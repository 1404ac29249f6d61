"""Requests of the protos, read: what they ask for, and whether each value makes sense by itself."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime.log import LEVELS
from agentruntime.secrets import check_wanted
from agentruntime.sections import (
    LEAST_CONVERSATION_BYTES,
    LEAST_CONVERSATION_EVENTS,
    LEAST_CONVERSATION_TTL_S,
    LEAST_LOG_BYTES,
    LONGEST_CONVERSATION_IDLE_S,
    MOST_EGRESS,
    egress_target,
    is_aggregator,
    none_or,
)

from agent_pool.asked import (
    Asked,
    AskedAccess,
    AskedCache,
    AskedHandling,
    AskedHealth,
    AskedIsolation,
    AskedLogging,
    AskedPermissions,
    AskedPolicies,
    AskedRetention,
    AskedServing,
    AskedTraffic,
)
from agent_pool.deployment import DEFAULT_GRACE_S, RunRequest
from agent_pool.messages import (
    COMPRESSIONS,
    FAILURE_ACTIONS,
    LOAD_BALANCERS,
    LOG_FORMATS,
    MODES,
    NETWORKS,
    ON_WORKER_LOST,
    RESTARTS,
    SECURITY_CONTEXTS,
    WHEN_BUSY,
)
from agent_pool.resources import Requested
from agent_pool.scaling.policy import MOST_REPLICAS, AskedScaling
from agent_pool.updates import ScaleRequest, UpdateRequest

Graceful = pb.StopAgentRequest | pb.RestartAgentRequest | pb.UpdateAgentRequest | pb.RollbackAgentRequest
Choice = TypeVar("Choice", bound=str)
Code = TypeVar("Code", bound=int)
_MOST_CONCURRENCY = 10_000
_MOST_QUEUE = 100_000
_MOST_FAILURES = 1000
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


def scale_request(message: pb.ScaleAgentRequest) -> ScaleRequest:
    """Reads a ScaleAgentRequest.

    Raises:
        InvalidArgument: more replicas than one pool keeps.
    """
    return ScaleRequest(
        message.agent,
        replicas(message),
        requested(message.resources) if message.HasField("resources") else None,
        asked_scaling(message.scaling),
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
    if message.replicas > MOST_REPLICAS:
        raise errors.InvalidArgument(f"{message.replicas} replicas are more than one pool keeps ({MOST_REPLICAS})")
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
        network=_chosen(NETWORKS, message.network, "network mode") or "",
        venv=message.venv,
        env=dict(message.env),
        log_level=level,
        serving=_asked_serving(message.serving),
        mode=_chosen(MODES, message.mode, "runtime mode") or "",
        isolation=_asked_isolation(message.isolation),
        log_format=_chosen(LOG_FORMATS, message.log_format, "log format") or "",
        permissions=_permissions(message.permissions),
        handling=_asked_handling(message.conversations),
    )


def asked_policies(message: pb.AgentSettings) -> AskedPolicies:
    """Reads the settings that are the agent's own.

    Raises:
        InvalidArgument: one has no sensible value.
    """
    return AskedPolicies(
        health=_asked_health(message.health_check),
        restart=_chosen(RESTARTS, message.restart_policy, "restart policy"),
        scaling=asked_scaling(message.scaling),
        traffic=_asked_traffic(message.traffic),
        cache=_asked_cache(message.cache),
        logging=_asked_logging(message.logging),
        access=_asked_access(message.access),
        retention=_asked_retention(message.conversations),
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
        compression=_chosen(COMPRESSIONS, message.compression, "compression"),
        optimize_throughput=message.optimize_throughput if message.HasField("optimize_throughput") else None,
        debug=message.debug if message.HasField("debug") else None,
    )


def _asked_traffic(message: pb.Traffic) -> AskedTraffic:
    threshold = message.failure_threshold if message.HasField("failure_threshold") else None
    if threshold is not None and threshold > _MOST_FAILURES:
        raise errors.InvalidArgument(f"a failure threshold of {threshold} is above {_MOST_FAILURES}")
    return AskedTraffic(_chosen(LOAD_BALANCERS, message.load_balancer, "load balancer"), threshold)


def _asked_cache(message: pb.Cache) -> AskedCache:
    ttl_s = message.ttl.ToNanoseconds() / 1e9 if message.HasField("ttl") else None
    if ttl_s is not None and ttl_s <= 0:
        raise errors.InvalidArgument(f"a cache that keeps answers for {ttl_s:g}s keeps none; leave it out instead")
    return AskedCache(message.max_bytes if message.HasField("max_bytes") else None, ttl_s)


def _asked_isolation(message: pb.Isolation) -> AskedIsolation:
    return AskedIsolation(
        _chosen(SECURITY_CONTEXTS, message.security_context, "security context"),
        message.read_only_root if message.HasField("read_only_root") else None,
        message.network_limit_bps if message.HasField("network_limit_bps") else None,
    )


def _asked_logging(message: pb.Logging) -> AskedLogging:
    aggregator = message.aggregator or None
    if aggregator is not None and not is_aggregator(aggregator):
        raise errors.InvalidArgument(
            f"'{aggregator}' is not where logs can be sent; write fluentd://host:port or none"
        )
    retention_s = message.retention.ToNanoseconds() / 1e9 if message.HasField("retention") else None
    if retention_s is not None and retention_s <= 0:
        raise errors.InvalidArgument(f"logs cannot be kept for {retention_s:g}s")
    max_bytes = message.max_bytes if message.HasField("max_bytes") else None
    if max_bytes is not None and max_bytes < LEAST_LOG_BYTES:
        raise errors.InvalidArgument(f"{max_bytes} bytes of logs are less than {LEAST_LOG_BYTES}")
    return AskedLogging(aggregator, retention_s, max_bytes)


def _asked_handling(message: pb.Conversations) -> AskedHandling:
    idle_s = message.idle.ToNanoseconds() / 1e9 if message.HasField("idle") else None
    if idle_s is not None and not 0 < idle_s <= LONGEST_CONVERSATION_IDLE_S:
        raise errors.InvalidArgument(
            f"a conversation that is idle after {idle_s:g}s is not sensible; say more than 0 and at most a day"
        )
    return AskedHandling(
        _chosen(WHEN_BUSY, message.when_busy, "way to take a message while busy"),
        _chosen(ON_WORKER_LOST, message.on_worker_lost, "way to go on after a lost worker"),
        idle_s,
    )


def _asked_retention(message: pb.Conversations) -> AskedRetention:
    ttl_s = message.ttl.ToNanoseconds() / 1e9 if message.HasField("ttl") else None
    events = message.max_events if message.HasField("max_events") else None
    size_bytes = message.max_bytes if message.HasField("max_bytes") else None
    for what, given, least in (
        ("ttl in seconds", ttl_s, LEAST_CONVERSATION_TTL_S),
        ("max_events", events, LEAST_CONVERSATION_EVENTS),
        ("max_bytes", size_bytes, LEAST_CONVERSATION_BYTES),
    ):
        if given and given < least:
            raise errors.InvalidArgument(f"conversations: {what} of {given:g} is less than {least:g}; 0 is no bound")
    return AskedRetention(ttl_s, events, size_bytes)


def _permissions(message: pb.Permissions) -> AskedPermissions:
    if len(message.egress) > MOST_EGRESS:
        raise errors.InvalidArgument(f"egress to more than {MOST_EGRESS} hosts; --network host has no bound")
    for name in message.secrets:
        check_wanted(name)
    with _named("permissions"):
        given = {field.name: none_or(names) for field, names in message.ListFields()}
    with _named("egress"):
        for entry in given.get("egress", ()):
            egress_target(entry)
    return AskedPermissions(**given)


def _asked_access(message: pb.Access) -> AskedAccess:
    with _named("access"):
        return AskedAccess.read(
            message.tls if message.HasField("tls") else None,
            message.keys,
            message.oauth2_client_id if message.HasField("oauth2_client_id") else None,
        )


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise errors.InvalidArgument(f"{what}: {error}") from None


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
    action = _chosen(FAILURE_ACTIONS, message.failure_action, "failure action")
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
