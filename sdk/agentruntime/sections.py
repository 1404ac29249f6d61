"""Sections of settings that `agent.yaml` and `runtime-config.yaml` share. None where nobody wrote anything."""

import ipaddress
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from agentruntime import api_keys, errors, units
from agentruntime.secrets import check_wanted


def _unit(parse: Any) -> BeforeValidator:
    def read(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError("write a number with a unit")  # pydantic collects ValueError only
        try:
            return parse(str(value))
        except errors.InvalidUnit as error:
            raise ValueError(error.message) from None

    return BeforeValidator(read)


DEFAULT_FLUENTD = "fluentd://localhost:24224"


# Less would not hold the lines of one traceback.
LEAST_LOG_BYTES = 100_000


def is_aggregator(text: str) -> bool:
    """Whether it is fluentd://host:port, or none."""
    match = re.fullmatch(r"fluentd://[^:/@]+:([0-9]{1,5})", text)
    return text == "none" or (match is not None and 1 <= int(match[1]) <= 65535)


def _aggregator(given: Any) -> Any:
    if given == "fluentd":
        return DEFAULT_FLUENTD
    if not is_aggregator(str(given)):
        raise ValueError("write fluentd, fluentd://host:port or none")
    return given


# What a circuit breaker and a cache are where only that they are wanted was said.
DEFAULT_FAILURE_THRESHOLD = 5
DEFAULT_CACHE_BYTES = 100 * 10**6

Size = Annotated[int, _unit(units.parse_size)]
Cpu = Annotated[int, _unit(units.parse_cpu)]
Duration = Annotated[float, _unit(units.parse_duration)]
Rate = Annotated[int, _unit(units.parse_rate)]
# A bare `fluentd` is the one of this machine.
Aggregator = Annotated[str, BeforeValidator(_aggregator)]
LoadBalancer = Literal["round-robin", "sticky", "health-based", "least-request"]
Compression = Literal["none", "gzip"]
RuntimeMode = Literal["native", "container", "serverless"]
SecurityContext = Literal["default", "restricted"]
LogFormat = Literal["text", "json"]
HealthFailureAction = Literal["restart", "stop", "ignore"]
WhenBusy = Literal["queue", "reject", "interrupt"]
OnWorkerLost = Literal["retry", "report"]
# YAML reads a bare `no` as false.
RestartPolicy = Annotated[
    Literal["always", "on-failure", "no"], BeforeValidator(lambda given: "no" if given is False else given)
]


class Section(BaseModel):
    """A mapping in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ResourcesSection(Section):
    """What one worker gets. Sizes in bytes, CPU in thousandths of a core."""

    memory_bytes: Size | None = Field(default=None, alias="memory")
    cpu_millis: Cpu | None = Field(default=None, alias="cpu")
    memory_limit_bytes: Size | None = Field(default=None, alias="memory_limit")
    cpu_limit_millis: Cpu | None = Field(default=None, alias="cpu_limit")
    gpus: int | None = Field(default=None, alias="gpu", ge=0, le=64)
    pids_limit: int | None = Field(default=None, alias="pids", ge=1)


class ScalingSection(Section):
    """How many workers there are. Durations in seconds."""

    # Whether the pool chooses the number by load.
    auto_scale: bool | None = None
    # 0: an idle agent sleeps.
    min_replicas: int | None = Field(default=None, ge=0, le=1000)
    max_replicas: int | None = Field(default=None, ge=1, le=1000)
    # Of what one worker may use, in percent.
    cpu_threshold: float | None = Field(default=None, gt=0, le=100)
    # Calls in flight for each worker.
    target_concurrency: float | None = Field(default=None, gt=0, le=10_000)
    idle_timeout_s: Duration | None = Field(default=None, alias="idle_timeout", gt=0)


class TrafficSection(Section):
    """What the gateway does with an agent's calls."""

    load_balancer: LoadBalancer | None = None
    # Whether a worker that fails calls in a row gets none for a while; `failure_threshold` says so too.
    circuit_breaker: bool | None = None
    failure_threshold: int | None = Field(default=None, ge=1, le=1000)

    @property
    def threshold(self) -> int | None:
        """Failures in a row that are too many; 0 for no circuit breaker, None where nothing was said of it."""
        if self.circuit_breaker is False:
            return 0
        return (
            DEFAULT_FAILURE_THRESHOLD
            if self.circuit_breaker and not self.failure_threshold
            else self.failure_threshold
        )


class CacheSection(Section):
    """Answers that the gateway gives again by itself. Off unless something of it is written."""

    enabled: bool | None = None
    ttl_s: Duration | None = Field(default=None, alias="ttl", gt=0)
    size_bytes: Size | None = Field(default=None, alias="size", gt=0)

    @property
    def max_bytes(self) -> int | None:
        """What it may hold; 0 for no cache, None where nothing was said of it."""
        if self.enabled is False:
            return 0
        wanted = self.enabled or self.ttl_s is not None
        return DEFAULT_CACHE_BYTES if wanted and not self.size_bytes else self.size_bytes


# Less would take a conversation from under whoever is in it, or not hold one message and its reply.
LEAST_CONVERSATION_TTL_S = 3600.0
LEAST_CONVERSATION_EVENTS = 10
LEAST_CONVERSATION_BYTES = 10_000
# A day: a worker that forgets nothing grows with every conversation.
LONGEST_CONVERSATION_IDLE_S = 86400.0


def _none_or_at_least(least: float, said: str) -> AfterValidator:
    def check(value: float) -> float:
        if value and value < least:
            raise ValueError(f"is less than {said}; 0 is no bound")
        return value

    return AfterValidator(check)


class ConversationsSection(Section):
    """How an agent's conversations go, and how long they are kept. Durations in seconds, sizes in bytes."""

    # Of a message that comes while another one is handled.
    when_busy: WhenBusy | None = None
    # Whether a message is handled again whose worker was lost.
    on_worker_lost: OnWorkerLost | None = None
    # Since the last event; 0 keeps them.
    ttl_s: Annotated[Duration, _none_or_at_least(LEAST_CONVERSATION_TTL_S, "1h")] | None = Field(
        default=None, alias="ttl"
    )
    # Of one conversation, beyond which the oldest messages go; 0 is no bound.
    max_events: Annotated[int, _none_or_at_least(LEAST_CONVERSATION_EVENTS, "10")] | None = Field(default=None, ge=0)
    max_bytes: Annotated[Size, _none_or_at_least(LEAST_CONVERSATION_BYTES, "10kB")] | None = None
    # Without a message, until a worker forgets what it has at hand.
    idle_s: Duration | None = Field(default=None, alias="idle", gt=0, le=LONGEST_CONVERSATION_IDLE_S)


class IsolationSection(Section):
    """Walls around a worker. Rates in bits per second; 0 is no limit."""

    security_context: SecurityContext | None = None
    read_only_root: bool | None = None
    network_limit_bps: Rate | None = Field(default=None, alias="network_limit", ge=0)


_TARGET = re.compile(r"(?P<host>[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]+\]):(?P<port>[0-9]{1,5})")
# Each costs a worker, and the gateway, a listening socket. As many again may be added by an operator.
MOST_EGRESS = 128


def egress_target(entry: str) -> tuple[str, int]:
    """("api.example.com", 443) of "api.example.com:443".

    Raises:
        ValueError: it is not host:port; IPv6 addresses are written in brackets.
    """
    match = _TARGET.fullmatch(entry)
    if match is None or not 0 < int(match["port"]) < 2**16 or not _is_host(match["host"]):
        raise ValueError(f"'{entry}' is not host:port, like api.example.com:443")
    return match["host"].strip("[]"), int(match["port"])


def _is_host(host: str) -> bool:
    """Whether what stands in brackets, if it does, is an IPv6 address."""
    try:
        return not host.startswith("[") or bool(ipaddress.IPv6Address(host.strip("[]")).exploded)
    except ValueError:
        return False


def _egress(entry: Any) -> str:
    text = str(entry).lower()
    if text != NONE:
        egress_target(text)
    return text


def _secret(name: str) -> str:
    try:
        return check_wanted(name)
    except errors.InvalidArgument as error:
        raise ValueError(error.message) from None


# Alone in a list, or as a client's id: no longer any, where silence would mean "as before".
NONE = "none"


def none_or(names: Sequence[str]) -> tuple[str, ...]:
    """The names, or none of "none".

    Raises:
        ValueError: "none" does not stand alone.
    """
    if NONE in names and len(names) > 1:
        raise ValueError(f"'{NONE}' stands for no longer any; write it alone, or leave it out")
    return () if NONE in names else tuple(names)


def _alone(names: list[str]) -> list[str]:
    """As they are: that there should be none must still be said to whoever knows what was before."""
    none_or(names)
    return names


class PermissionsSection(Section):
    """What an agent may use; nothing that is not named, "*" for all, "none" for none that was added."""

    # Other agents that it may call.
    agents: Annotated[list[str], AfterValidator(_alone)] = Field(default_factory=list)
    models: Annotated[list[str], AfterValidator(_alone)] = Field(default_factory=list)
    topics: Annotated[list[str], AfterValidator(_alone)] = Field(default_factory=list)
    tools: Annotated[list[str], AfterValidator(_alone)] = Field(default_factory=list)
    # host:port
    egress: Annotated[list[Annotated[str, BeforeValidator(_egress)]], AfterValidator(_alone)] = Field(
        default_factory=list, max_length=MOST_EGRESS
    )
    secrets: Annotated[list[Annotated[str, AfterValidator(_secret)]], AfterValidator(_alone)] = Field(
        default_factory=list
    )


def _key(given: Any) -> Any:
    if not (isinstance(given, str) and given.startswith(api_keys.PREFIX)):
        return given
    found = api_keys.key_id_of(given)
    if not found:
        # Without what was given: it may be a key that was cut off.
        raise ValueError("it begins as an API key and is none; give it whole, or its name")
    return found


class AccessSection(Section):
    """What an agent demands of its callers."""

    tls: bool | None = None
    # API keys, by name or id, or the key itself, of which only the id is kept; "*" is any.
    keys: Annotated[list[Annotated[str, BeforeValidator(_key)]], AfterValidator(_alone)] = Field(default_factory=list)
    oauth2_client_id: str | None = None


class LoggingSection(Section):
    """What becomes of log lines. Durations in seconds, sizes in bytes."""

    format: LogFormat | None = None
    # "fluentd", "fluentd://host:port", or "none".
    aggregator: Aggregator | None = None
    retention_s: Duration | None = Field(default=None, alias="retention", gt=0)
    max_bytes: Size | None = Field(default=None, alias="max_size", ge=LEAST_LOG_BYTES)
