"""An agent's policies as they are in force, defaults filled in. They change without new workers."""

from dataclasses import dataclass, field, replace

from agent_pool.asked import AskedPolicies, LoadBalancer, RestartMode, spoken
from agent_pool.health import HealthPolicy
from agent_pool.scaling.policy import ScalingPolicy


@dataclass(frozen=True)
class TrafficPolicy:
    """What the gateway does with an agent's calls; the proto's Traffic."""

    load_balancer: LoadBalancer = "least-request"
    # Failures in a row that take a worker out for a while; 0 for no circuit breaker.
    failure_threshold: int = 0


@dataclass(frozen=True)
class CachePolicy:
    """Answers that the gateway gives again; the proto's Cache. 0 bytes are no cache."""

    max_bytes: int = 0
    ttl_s: float = 300.0


@dataclass(frozen=True)
class LoggingPolicy:
    """Where log lines go, and for how long they are kept; the proto's Logging."""

    # "fluentd://host:port", or "none".
    aggregator: str = "none"
    retention_s: float = 7 * 86400.0
    max_bytes: int = 100 * 10**6


@dataclass(frozen=True)
class AccessPolicy:
    """What an agent demands of its callers; the proto's Access."""

    tls: bool = False
    # API keys, by name or id; none for no such demand.
    keys: tuple[str, ...] = ()
    # "" for no such demand.
    oauth2_client_id: str = ""


@dataclass(frozen=True)
class RetentionPolicy:
    """How long conversations are kept, and how much of each; of the proto's Conversations. 0 is no bound."""

    ttl_s: float = 0.0
    max_events: int = 0
    max_bytes: int = 0


@dataclass(frozen=True)
class Policies:
    """All of one agent."""

    health: HealthPolicy = field(default_factory=HealthPolicy)
    restart: RestartMode = "always"
    scaling: ScalingPolicy = field(default_factory=ScalingPolicy)
    traffic: TrafficPolicy = field(default_factory=TrafficPolicy)
    cache: CachePolicy = field(default_factory=CachePolicy)
    logging: LoggingPolicy = field(default_factory=LoggingPolicy)
    access: AccessPolicy = field(default_factory=AccessPolicy)
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)

    @classmethod
    def of(
        cls, asked: AskedPolicies, concurrency: int, *, debug: bool = False, converses: bool = False
    ) -> "Policies":
        """Of what was asked over what agent.yaml says.

        Args:
            asked: that.
            concurrency: calls that a worker handles at a time.
            converses: whether it holds conversations: each stays at a worker then, unless somebody says otherwise.
            debug: whether workers may stand at a breakpoint: nothing is done about those that fail their checks then.

        Raises:
            InvalidArgument: a value that makes no sense.
        """
        health = HealthPolicy(**spoken(asked.health))
        return cls(
            health=replace(health, failure_action="ignore") if debug else health,
            restart=asked.restart or "always",
            scaling=asked.scaling.policy(concurrency),
            traffic=TrafficPolicy(**{**({"load_balancer": "sticky"} if converses else {}), **spoken(asked.traffic)}),
            cache=CachePolicy(**spoken(asked.cache)),
            logging=LoggingPolicy(**spoken(asked.logging)),
            access=AccessPolicy(**spoken(asked.access)),
            retention=RetentionPolicy(**spoken(asked.retention)),
        )
