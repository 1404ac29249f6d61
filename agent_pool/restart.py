"""When a worker that died is started again: a pure decision."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RestartPolicy:
    """Exponential backoff, as Kubernetes' CrashLoopBackOff has it, only faster at first."""

    first_delay_s: float = 0.1
    factor: float = 2.0
    longest_delay_s: float = 60.0
    # A worker that served this long before it died begins anew.
    forgive_after_s: float = 60.0


def next_delay(policy: RestartPolicy, failures: int, ready_for_s: float) -> tuple[float, int]:
    """Seconds to wait before the next start, and the failures in a row to remember.

    Args:
        failures: in a row, before this one.
        ready_for_s: how long the worker that just died had been ready; 0 if it never was.
    """
    if ready_for_s >= policy.forgive_after_s:
        failures = 0
    # Capped before the power: 2.0 ** 5000 overflows.
    delay = policy.first_delay_s * policy.factor ** min(failures, 64)
    return min(delay, policy.longest_delay_s), failures + 1
