"""How many workers an agent should have: a pure decision on what was seen of its calls and its CPU.

Of the shape of Knative's and Kubernetes' autoscalers: a mean over a short window says how many are needed, growth is
bounded by steps, and the highest need of a long window keeps the number from going down too early.
"""

import math
from dataclasses import dataclass, replace

from agent_pool.scaling.policy import ScalingPolicy

# A step of growth may always be this large, so that doubling begins somewhere.
_LEAST_STEP = 4
# A need that differs from what is there by less than this share changes nothing.
_TOLERANCE = 0.1
# Of sums of floats; no reason for one more worker.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Windows:
    """Over which times the scaler looks, in seconds."""

    # Over which needs are averaged.
    mean_s: float = 10.0
    # For which the number has to have been too high before it goes down.
    calm_s: float = 60.0
    # In which the number at most doubles.
    step_s: float = 2.0


@dataclass(frozen=True)
class Sample:
    """What was seen of an agent at one time."""

    at_s: float
    # In flight, and waiting for a worker.
    calls: float
    # Of all workers together, in multiples of what one worker may use.
    cpu: float


@dataclass(frozen=True)
class History:
    """What a decision needs to know of those before it. Begin with an empty one whenever samples were missed."""

    samples: tuple[Sample, ...] = ()
    # When how many were wanted, of the last `calm_s`.
    wanted: tuple[tuple[float, int], ...] = ()
    since_s: float = math.inf
    # When the present step of growth began, and from how many.
    step_s: float = -math.inf
    step_from: int = 0


def decide(
    history: History, sample: Sample, policy: ScalingPolicy, windows: Windows, *, workers: int, called: bool
) -> tuple[int, History]:
    """How many workers there should be from `sample.at_s` on, and the history for the next decision.

    Args:
        history: of the decisions before.
        sample: newer than all before.
        policy: its bounds hold always, whatever was seen.
        windows: over which times to look.
        workers: how many there are to be now.
        called: whether a call began, waited or was in flight within `windows.mean_s`; without one nothing grows.
    """
    now_s = sample.at_s
    samples = (*(each for each in history.samples if each.at_s > now_s - windows.mean_s), sample)
    wanted = _bounded(_needed(samples, policy, workers, called=called), policy)
    kept = (*((at_s, number) for at_s, number in history.wanted if at_s > now_s - windows.calm_s), (now_s, wanted))
    history = replace(history, samples=samples, wanted=kept, since_s=min(history.since_s, now_s))
    if wanted > workers:
        if now_s - history.step_s >= windows.step_s:
            history = replace(history, step_s=now_s, step_from=workers)
        wanted = min(wanted, max(2 * history.step_from, history.step_from + _LEAST_STEP))
    elif wanted < workers and now_s - history.since_s >= windows.calm_s:
        # The highest was never reached if growth was bounded when it was wanted.
        wanted = min(workers, max(number for _, number in kept))
    else:
        wanted = workers
    return _bounded(wanted, policy), history


def _needed(samples: tuple[Sample, ...], policy: ScalingPolicy, workers: int, *, called: bool) -> int:
    if not called:
        return 0
    need = max(
        sum(each.calls for each in samples) / len(samples) / policy.target_concurrency,
        sum(each.cpu for each in samples) / len(samples) / (policy.cpu_threshold_percent / 100),
    )
    if abs(need - workers) < _TOLERANCE * workers:
        return workers
    return math.ceil(need - _ROUNDING)


def _bounded(number: int, policy: ScalingPolicy) -> int:
    return min(max(number, policy.min_replicas, 1), policy.max_replicas)
