"""The decision, and a probe of nobody."""

import pytest

from agent_pool.health import Answer, HealthPolicy, HealthProbe, Verdict, judge, problem, weight

POLICY = HealthPolicy(retries=3)


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        ([], Verdict.UNDECIDED),
        ([True], Verdict.WELL),
        ([False], Verdict.UNDECIDED),
        ([False, False], Verdict.UNDECIDED),
        ([False, False, False], Verdict.SICK),
        ([True, False, False], Verdict.UNDECIDED),
        ([True, False, False, False], Verdict.SICK),
        ([False, False, False, True], Verdict.WELL),
    ],
)
def test_judge(results: list[bool], verdict: Verdict) -> None:
    assert judge(POLICY, results) is verdict


async def test_nobody_there() -> None:
    probe = HealthProbe("unix:/nowhere/at/all")
    assert await probe.ask(0.05) == Answer("no answer to a health check in 0.05s")
    assert await probe.until_well(0.05)
    await probe.close()


@pytest.mark.parametrize(
    ("lag_s", "share"), [(0.0, 100), (0.02, 100), (0.06, 50), (0.38, 10), (4.0, 1), (1e9, 1), (float("inf"), 1)]
)
def test_weight(lag_s: float, share: int) -> None:
    assert weight(lag_s) == share


def test_a_blocked_event_loop_is_a_failed_check() -> None:
    policy = HealthPolicy(timeout_s=5.0)
    assert problem(policy, Answer("", 5.0)) == ""
    assert problem(policy, Answer("", 6.21)) == (
        "its event loop was blocked for 6.21s, longer than a health check may take (5s)"
    )
    assert problem(policy, Answer("health check says NOT_SERVING", 6.2)) == "health check says NOT_SERVING"
