"""What requests and agent.yaml say: None, or empty, where they are silent; one laid over the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from agentruntime.manifest import AgentManifest, HealthSection
from agentruntime.sections import (
    DEFAULT_CACHE_BYTES,
    NONE,
    AccessSection,
    CacheSection,
    ConversationsSection,
    IsolationSection,
    LoggingSection,
    PermissionsSection,
    TrafficSection,
    none_or,
)

from agent_pool.resources import Requested
from agent_pool.scaling.policy import AskedScaling

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Said = TypeVar("Said", bound=DataclassInstance)

RestartMode = Literal["always", "on-failure", "no"]
FailureAction = Literal["restart", "stop", "ignore"]
LoadBalancer = Literal["round-robin", "sticky", "health-based", "least-request"]
Compression = Literal["none", "gzip"]
SecurityContext = Literal["default", "restricted"]
Mode = Literal["native", "container"]
LogFormat = Literal["text", "json"]
WhenBusy = Literal["queue", "reject", "interrupt"]
OnWorkerLost = Literal["retry", "report"]


def spoken(said: "DataclassInstance") -> dict[str, Any]:
    """The fields that are not silent."""
    return {entry.name: value for entry in fields(said) if (value := getattr(said, entry.name)) is not None}


def _flag(setting: str) -> str:
    """ "--memory-limit" of "memory_limit_bytes": as the command has it."""
    word = setting.removesuffix("_bytes").removesuffix("_millis").removesuffix("_bps").replace("_", "-")
    return "--" + {"gpus": "gpu", "idle-s": "conversation-idle"}.get(word, word)


def over(said: "Said", below: "Said") -> "Said":
    """What `said` says, and where it is silent what `below` says."""
    return replace(below, **spoken(said))


@dataclass(frozen=True)
class AskedServing:
    """How a worker serves."""

    concurrency: int | None = None
    queue: int | None = None
    compression: Compression | None = None
    optimize_throughput: bool | None = None
    debug: bool | None = None


@dataclass(frozen=True)
class AskedIsolation:
    """Walls around a worker, beside its network."""

    security_context: SecurityContext | None = None
    read_only_root: bool | None = None
    network_limit_bps: int | None = None

    @classmethod
    def of_manifest(cls, section: IsolationSection) -> "AskedIsolation":
        return cls(section.security_context, section.read_only_root, section.network_limit_bps)


@dataclass(frozen=True)
class AskedLogging:
    """Where log lines go, and for how long they are kept."""

    # "fluentd://host:port" or "none".
    aggregator: str | None = None
    retention_s: float | None = None
    max_bytes: int | None = None

    @classmethod
    def of_manifest(cls, section: LoggingSection) -> "AskedLogging":
        return cls(section.aggregator, section.retention_s, section.max_bytes)


@dataclass(frozen=True)
class AskedHealth:
    """When a worker counts as ready and as unhealthy, and what is done then."""

    interval_s: float | None = None
    timeout_s: float | None = None
    retries: int | None = None
    start_timeout_s: float | None = None
    failure_action: FailureAction | None = None

    @classmethod
    def of_manifest(cls, section: HealthSection) -> "AskedHealth":
        return cls(**{entry.name: getattr(section, entry.name) for entry in fields(cls)})


@dataclass(frozen=True)
class AskedTraffic:
    """What the gateway does with an agent's calls. A threshold of 0 is no circuit breaker."""

    load_balancer: LoadBalancer | None = None
    failure_threshold: int | None = None

    @classmethod
    def of_manifest(cls, section: TrafficSection) -> "AskedTraffic":
        return cls(section.load_balancer, section.threshold)


@dataclass(frozen=True)
class AskedCache:
    """Answers that the gateway gives again. 0 bytes are no cache."""

    max_bytes: int | None = None
    ttl_s: float | None = None

    @classmethod
    def of_manifest(cls, section: CacheSection) -> "AskedCache":
        return cls(section.max_bytes, section.ttl_s)

    def over(self, below: "AskedCache") -> "AskedCache":
        """This, and where it is silent what `below` says; a time to live alone turns a cache on that is off."""
        merged = over(self, below)
        if self.ttl_s is not None and self.max_bytes is None and not below.max_bytes:
            return replace(merged, max_bytes=DEFAULT_CACHE_BYTES)
        return merged


@dataclass(frozen=True)
class Permissions:
    """What an agent may use. The proto's Permissions."""

    agents: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    # "host:port"
    egress: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()

    @classmethod
    def of_manifest(cls, section: PermissionsSection) -> "Permissions":
        return cls(**{name: none_or(names) for name, names in section})

    def and_also(self, more: "AskedPermissions") -> "Permissions":
        """What either of the two gives, in order, each once."""
        added = {name: tuple(dict.fromkeys((*getattr(self, name), *names))) for name, names in spoken(more).items()}
        return replace(self, **added)


@dataclass(frozen=True)
class AskedPermissions:
    """What an operator adds to those of agent.yaml; empty where it is no longer any."""

    agents: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    topics: tuple[str, ...] | None = None
    tools: tuple[str, ...] | None = None
    egress: tuple[str, ...] | None = None
    secrets: tuple[str, ...] | None = None


@dataclass(frozen=True)
class AskedAccess:
    """What is demanded of callers."""

    tls: bool | None = None
    # API keys, by name or id; empty where none is demanded any longer.
    keys: tuple[str, ...] | None = None
    # "" likewise.
    oauth2_client_id: str | None = None

    @classmethod
    def of_manifest(cls, section: AccessSection) -> "AskedAccess":
        return cls.read(section.tls, section.keys, section.oauth2_client_id)

    @classmethod
    def read(cls, tls: bool | None, keys: Sequence[str], client_id: str | None) -> "AskedAccess":
        """With "none" for no longer any. Raises ValueError if it does not stand alone."""
        return cls(tls, none_or(keys) if keys else None, "" if client_id == NONE else client_id)


@dataclass(frozen=True)
class AskedHandling:
    """How workers handle the messages of conversations."""

    when_busy: WhenBusy | None = None
    on_worker_lost: OnWorkerLost | None = None
    idle_s: float | None = None

    @classmethod
    def of_manifest(cls, section: ConversationsSection) -> "AskedHandling":
        return cls(section.when_busy, section.on_worker_lost, section.idle_s)


@dataclass(frozen=True)
class AskedRetention:
    """How long conversations are kept, and how much of each. 0 is no bound."""

    ttl_s: float | None = None
    max_events: int | None = None
    max_bytes: int | None = None

    @classmethod
    def of_manifest(cls, section: ConversationsSection) -> "AskedRetention":
        return cls(section.ttl_s, section.max_events, section.max_bytes)


@dataclass(frozen=True)
class AskedPolicies:
    """Settings that are the agent's own, and change without new workers."""

    health: AskedHealth = field(default_factory=AskedHealth)
    restart: RestartMode | None = None
    scaling: AskedScaling = field(default_factory=AskedScaling)
    traffic: AskedTraffic = field(default_factory=AskedTraffic)
    cache: AskedCache = field(default_factory=AskedCache)
    logging: AskedLogging = field(default_factory=AskedLogging)
    access: AskedAccess = field(default_factory=AskedAccess)
    retention: AskedRetention = field(default_factory=AskedRetention)

    @classmethod
    def of_manifest(cls, manifest: AgentManifest) -> "AskedPolicies":
        """What agent.yaml says."""
        return cls(
            health=AskedHealth.of_manifest(manifest.health),
            restart=manifest.restart_policy,
            scaling=AskedScaling.of_manifest(manifest.scaling),
            traffic=AskedTraffic.of_manifest(manifest.traffic),
            cache=AskedCache.of_manifest(manifest.cache),
            logging=AskedLogging.of_manifest(manifest.logging),
            access=AskedAccess.of_manifest(manifest.access),
            retention=AskedRetention.of_manifest(manifest.conversations),
        )

    def over(self, below: "AskedPolicies") -> "AskedPolicies":
        """This, and where it is silent what `below` says."""
        return AskedPolicies(
            health=over(self.health, below.health),
            restart=self.restart or below.restart,
            scaling=self.scaling.over(below.scaling),
            traffic=over(self.traffic, below.traffic),
            cache=self.cache.over(below.cache),
            logging=over(self.logging, below.logging),
            access=over(self.access, below.access),
            retention=over(self.retention, below.retention),
        )


@dataclass(frozen=True)
class Asked:
    """Settings that belong to a revision: changing them takes new workers."""

    resources: Requested = field(default_factory=Requested)
    # "isolated", "host" or "".
    network: str = ""
    venv: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    log_level: str = ""
    serving: AskedServing = field(default_factory=AskedServing)
    # "native", "container" or "".
    mode: str = ""
    isolation: AskedIsolation = field(default_factory=AskedIsolation)
    # "text", "json" or "".
    log_format: str = ""
    permissions: AskedPermissions = field(default_factory=AskedPermissions)
    handling: AskedHandling = field(default_factory=AskedHandling)

    def over(self, below: "Asked") -> "Asked":
        """This, and where it is silent what `below` says; of the environment, variable by variable."""
        return Asked(
            resources=self.resources.over(below.resources),
            network=self.network or below.network,
            venv=self.venv or below.venv,
            env={**below.env, **self.env},
            log_level=self.log_level or below.log_level,
            serving=over(self.serving, below.serving),
            mode=self.mode or below.mode,
            isolation=over(self.isolation, below.isolation),
            log_format=self.log_format or below.log_format,
            permissions=over(self.permissions, below.permissions),
            handling=over(self.handling, below.handling),
        )

    def differs_from(self, running: "Asked") -> list[str]:
        """The settings that this makes and that are not as what runs has them, by the flags that make them."""
        changed = []
        parts = (
            (self.resources, running.resources),
            (self.serving, running.serving),
            (self.isolation, running.isolation),
            (self.handling, running.handling),
        )
        for part, other in parts:
            changed += [name for name, value in spoken(part).items() if value != getattr(other, name)]
        for name in ("network", "venv", "log_level", "log_format"):
            value = getattr(self, name)
            if value and value != getattr(running, name):
                changed.append(name)
        if self.mode and self.mode != running.mode:
            # Its flags are its values.
            changed.append(self.mode)
        for name, given in spoken(self.permissions).items():
            if given != (getattr(running.permissions, name) or ()):
                changed.append(name)
        if {**running.env, **self.env} != dict(running.env):
            changed.append("env")
        return [_flag(name) for name in changed]
