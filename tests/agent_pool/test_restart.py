"""The backoff."""

import pytest

from agent_pool.restart import RestartPolicy, next_delay

POLICY = RestartPolicy(first_delay_s=0.1, factor=2.0, longest_delay_s=60.0, forgive_after_s=60.0)


@pytest.mark.parametrize(
    ("failures", "ready_for_s", "delay_s", "remembered"),
    [
        (0, 0.0, 0.1, 1),
        (1, 0.0, 0.2, 2),
        (3, 59.9, 0.8, 4),
        (3, 60.0, 0.1, 1),
        (10, 0.0, 60.0, 11),
        (100_000, 0.0, 60.0, 100_001),
    ],
)
def test_next_delay(failures: int, ready_for_s: float, delay_s: float, remembered: int) -> None:
    delay, failures_now = next_delay(POLICY, failures, ready_for_s)
    assert delay == pytest.approx(delay_s)
    assert failures_now == remembered
