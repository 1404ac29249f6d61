"""How an agent scales by itself, and when it sleeps: what was asked, and the policy in force."""

from dataclasses import dataclass, fields

from agentruntime import errors
from agentruntime.sections import ScalingSection

# Of the calls that a worker handles at a time, so that a burst finds room while the next worker starts.
_DEFAULT_TARGET_SHARE = 0.75
MOST_REPLICAS = 1000


@dataclass(frozen=True)
class ScalingPolicy:
    """Of one agent; the proto's Scaling, defaults filled in."""

    auto_scale: bool = False
    min_replicas: int = 0
    max_replicas: int = 10
    # Mean CPU use of the workers above which more are started; 100 is all that one worker may use.
    cpu_threshold_percent: float = 80.0
    # Calls in flight that one worker should have.
    target_concurrency: float = _DEFAULT_TARGET_SHARE * 64
    idle_timeout_s: float = 300.0

    @property
    def may_sleep(self) -> bool:
        """Whether the agent is put to sleep when it is idle."""
        return self.min_replicas == 0

    def check_replicas(self, replicas: int) -> None:
        """Whether an operator may ask for so many workers.

        Raises:
            InvalidArgument: the pool would change the number at once, or it puts an agent to sleep that never sleeps.
        """
        if replicas == 0 and not self.may_sleep:
            raise errors.InvalidArgument(
                f"0 replicas put an agent to sleep, and one with a minimum of {self.min_replicas} never sleeps; "
                "set the minimum to 0, or stop the agent"
            )
        if replicas and self.auto_scale and not self.min_replicas <= replicas <= self.max_replicas:
            raise errors.InvalidArgument(
                f"{replicas} replicas are not between the minimum of {self.min_replicas} and the maximum of "
                f"{self.max_replicas} that the agent scales between; change those, or turn auto-scaling off"
            )


@dataclass(frozen=True)
class AskedScaling:
    """The part of a scaling policy that somebody sets; None where they are silent."""

    auto_scale: bool | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    cpu_threshold_percent: float | None = None
    target_concurrency: float | None = None
    idle_timeout_s: float | None = None

    @classmethod
    def of_manifest(cls, section: ScalingSection) -> "AskedScaling":
        """What agent.yaml says."""
        return cls(
            auto_scale=section.auto_scale,
            min_replicas=section.min_replicas,
            max_replicas=section.max_replicas,
            cpu_threshold_percent=section.cpu_threshold,
            target_concurrency=section.target_concurrency,
            idle_timeout_s=section.idle_timeout_s,
        )

    def over(self, below: "AskedScaling") -> "AskedScaling":
        """This, and where it is silent what `below` says."""
        merged = {field.name: getattr(self, field.name) for field in fields(self)}
        return AskedScaling(
            **{name: own if own is not None else getattr(below, name) for name, own in merged.items()}
        )

    def policy(self, concurrency: int) -> ScalingPolicy:
        """The policy in force, for workers that handle `concurrency` calls at a time.

        Raises:
            InvalidArgument: a value that makes no sense, or a minimum above the maximum.
        """
        said = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        policy = ScalingPolicy(**{"target_concurrency": _DEFAULT_TARGET_SHARE * concurrency, **said})
        _check(policy)
        return policy


def _check(policy: ScalingPolicy) -> None:
    if not 1 <= policy.max_replicas <= MOST_REPLICAS:
        raise errors.InvalidArgument(
            f"a maximum of {policy.max_replicas} replicas is not between 1 and {MOST_REPLICAS}"
        )
    if not 0 <= policy.min_replicas <= policy.max_replicas:
        raise errors.InvalidArgument(
            f"a minimum of {policy.min_replicas} replicas is above the maximum of {policy.max_replicas}; raise --max"
        )
    if not 0 < policy.cpu_threshold_percent <= 100:
        raise errors.InvalidArgument(
            f"a CPU threshold of {policy.cpu_threshold_percent:g} is not above 0 and at most 100 percent"
        )
    # Not-a-number and infinity alike.
    if not 0 < policy.target_concurrency <= 10_000:
        raise errors.InvalidArgument(
            f"a target concurrency of {policy.target_concurrency:g} is not above 0 and at most 10000 calls"
        )
    if not 0 < policy.idle_timeout_s <= 366 * 86400:
        raise errors.InvalidArgument(
            f"an idle timeout of {policy.idle_timeout_s:g}s is not above 0 and at most a year"
        )
