"""Who is started again, and when."""

import pytest

from agent_pool.asked import RestartMode
from agent_pool.restart import Backoff, next_delay, wanted_again

BACKOFF = Backoff(first_delay_s=0.1, factor=2.0, longest_delay_s=60.0, forgive_after_s=60.0)


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
    delay, failures_now = next_delay(BACKOFF, failures, ready_for_s, chance=1.0)
    assert delay == pytest.approx(delay_s)
    assert next_delay(BACKOFF, failures, ready_for_s, chance=0.0)[0] == pytest.approx(delay_s / 2)
    assert failures_now == remembered


@pytest.mark.parametrize(
    ("mode", "status", "served", "again"),
    [
        ("always", 0, True, True),
        ("always", -9, True, True),
        ("on-failure", 0, True, False),
        ("on-failure", 0, False, True),
        ("on-failure", 1, True, True),
        ("on-failure", -9, True, True),
        ("on-failure", None, True, True),
        ("no", 0, True, False),
        ("no", 1, True, False),
        ("no", None, False, False),
    ],
)
def test_who_is_wanted_again(mode: RestartMode, status: int | None, served: bool, again: bool) -> None:
    assert wanted_again(mode, status, served=served) is again
