"""Whether and when a worker that ended by itself is started again: pure decisions."""

from dataclasses import dataclass

from agent_pool.asked import RestartMode

# Failures in a row from which on a worker is said to be in a crash loop.
CRASH_LOOP_FAILURES = 5


@dataclass(frozen=True)
class Backoff:
    """Exponential, as Kubernetes' CrashLoopBackOff has it, only faster at first."""

    first_delay_s: float = 0.1
    factor: float = 2.0
    longest_delay_s: float = 60.0
    # A worker that served this long before it died begins anew.
    forgive_after_s: float = 60.0


def wanted_again(mode: RestartMode, status: int | None, *, served: bool) -> bool:
    """Whether a worker that ended by itself is started again.

    Args:
        mode: the agent's restart policy.
        status: its exit status; None where nobody saw it, which counts as a failure.
        served: whether it had become ready. One that never did has failed, whatever its status.
    """
    if mode == "on-failure":
        return status != 0 or not served
    return mode == "always"


def next_delay(backoff: Backoff, failures: int, ready_for_s: float, chance: float) -> tuple[float, int]:
    """Seconds to wait before the next start, and the failures in a row to remember.

    Args:
        backoff: how delays grow.
        failures: in a row, before this one.
        ready_for_s: how long the worker that just died had been ready; 0 if it never was.
        chance: from 0 to 1, at random. The delay is between half of what the backoff says and all of it, so that
            workers which died together do not come back together.
    """
    if ready_for_s >= backoff.forgive_after_s:
        failures = 0
    # Capped before the power: 2.0 ** 5000 overflows.
    delay_s = min(backoff.first_delay_s * backoff.factor ** min(failures, 64), backoff.longest_delay_s)
    return delay_s * (0.5 + 0.5 * chance), failures + 1
