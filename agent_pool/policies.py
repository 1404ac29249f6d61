"""An agent's policies as they are in force, defaults filled in. They change without new workers."""

from dataclasses import dataclass, field

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
class Policies:
    """All of one agent."""

    health: HealthPolicy = field(default_factory=HealthPolicy)
    restart: RestartMode = "always"
    scaling: ScalingPolicy = field(default_factory=ScalingPolicy)
    traffic: TrafficPolicy = field(default_factory=TrafficPolicy)
    cache: CachePolicy = field(default_factory=CachePolicy)

    @classmethod
    def of(cls, asked: AskedPolicies, concurrency: int) -> "Policies":
        """Of what was asked over what agent.yaml says, for workers that handle so many calls at a time.

        Raises:
            InvalidArgument: a value that makes no sense.
        """
        return cls(
            health=HealthPolicy(**spoken(asked.health)),
            restart=asked.restart or "always",
            scaling=asked.scaling.policy(concurrency),
            traffic=TrafficPolicy(**spoken(asked.traffic)),
            cache=CachePolicy(**spoken(asked.cache)),
        )
