"""The scaler against a simulated clock: what holds for every load, and what it does with a constant one."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from agent_pool.scaling.policy import ScalingPolicy
from agent_pool.scaling.scaler import History, Sample, Windows, decide

TICK_S = 0.5
WINDOWS = Windows()

policies = st.builds(
    lambda least, more, target, threshold: ScalingPolicy(True, least, max(1, least) + more, threshold, target),
    st.integers(0, 5),
    st.integers(0, 60),
    st.floats(0.5, 64),
    st.floats(10, 100),
)
# Stretches of constant load: seconds, calls in flight, workers' worth of CPU.
loads = st.lists(
    st.tuples(st.floats(0.5, 90), st.integers(0, 3000) | st.just(0), st.floats(0, 40)), min_size=1, max_size=6
)


@dataclass(frozen=True)
class Step:
    """One decision."""

    at_s: float
    called: bool
    before: int
    after: int


def simulate(policy: ScalingPolicy, stretches: list[tuple[float, int, float]], workers: int) -> Iterator[Step]:
    """What the scaler makes of a load, tick by tick; CPU is used only where there are calls."""
    history, at_s, last_call_s = History(), 0.0, -math.inf
    for seconds, calls, cpu in stretches:
        end_s = at_s + seconds
        while at_s < end_s:
            if calls:
                last_call_s = at_s
            called = at_s - last_call_s < WINDOWS.mean_s
            sample = Sample(at_s, calls, cpu)
            before = workers
            workers, history = decide(history, sample, policy, WINDOWS, workers=before, called=called)
            yield Step(at_s, called, before, workers)
            at_s += TICK_S


def steps(policy: ScalingPolicy, stretches: list[tuple[float, int, float]], workers: int = 1) -> list[Step]:
    return list(simulate(policy, stretches, workers))


@settings(max_examples=150)
@given(policies, loads, st.integers(1, 60))
def test_what_always_holds(policy: ScalingPolicy, stretches: list[tuple[float, int, float]], begin: int) -> None:
    grew_s = -math.inf
    floor = max(1, policy.min_replicas)
    for step in steps(policy, stretches, begin):
        assert floor <= step.after <= policy.max_replicas
        within = min(max(step.before, floor), policy.max_replicas)
        if step.after > within:
            assert step.called, "it grew without traffic"
            assert step.after <= max(2 * within, within + 4)
            grew_s = step.at_s
        elif step.after < within:
            assert step.at_s >= WINDOWS.calm_s
            assert step.at_s - grew_s >= WINDOWS.calm_s, "it shrank right after it grew"


@settings(max_examples=100)
@given(policies, loads)
def test_growth_is_bounded_within_each_step(policy: ScalingPolicy, stretches: list[tuple[float, int, float]]) -> None:
    done = steps(policy, stretches)
    for index, step in enumerate(done):
        then = done[max(0, index - int(WINDOWS.step_s / TICK_S) + 1)]
        # Two steps of growth may touch within any two seconds, never three.
        least = max(then.before, 1, policy.min_replicas)
        assert step.after <= 2 * max(2 * least, least + 4) + 4


@settings(max_examples=100)
@given(policies, st.integers(1, 2000), st.floats(0, 30), st.integers(1, 60))
def test_a_constant_load_gets_what_it_needs_and_nothing_flaps(
    policy: ScalingPolicy, calls: int, cpu: float, begin: int
) -> None:
    need = max(calls / policy.target_concurrency, cpu / (policy.cpu_threshold_percent / 100))
    goal = min(max(math.ceil(need), policy.min_replicas, 1), policy.max_replicas)
    doublings = math.ceil(math.log2(max(2, goal)))
    growing_s = WINDOWS.mean_s + (doublings + 1) * WINDOWS.step_s
    done = steps(policy, [(growing_s + 2 * WINDOWS.calm_s, calls, cpu)], begin)
    grown = done[int(growing_s / TICK_S)].after
    assert grown >= goal or grown * 1.1 > need
    changes = [step for step in done if step.after != step.before]
    # Up to the goal first, then at most once down to it, and still ever after.
    downs = [index for index, step in enumerate(changes) if step.after < step.before and step.at_s > 0]
    assert len(downs) <= 1
    assert done[-1].after == done[int((growing_s + WINDOWS.calm_s) / TICK_S)].after


@settings(max_examples=50)
@given(policies, st.integers(1, 2000))
def test_after_the_calls_it_comes_back_to_the_minimum(policy: ScalingPolicy, calls: int) -> None:
    back_s = WINDOWS.mean_s + WINDOWS.calm_s + 1
    done = steps(policy, [(30, calls, 0.0), (back_s, 0, 0.0)])
    assert done[-1].after == max(1, policy.min_replicas)


@settings(max_examples=50)
@given(policies, st.floats(0, 40))
def test_busy_workers_without_calls_are_no_reason_to_start_more(policy: ScalingPolicy, cpu: float) -> None:
    assert all(
        step.after <= max(step.before, policy.min_replicas)
        for step in steps(policy, [(90, 0, cpu)], max(1, policy.min_replicas))
    )


def test_a_load_that_comes_and_goes_within_the_window_moves_nothing() -> None:
    policy = ScalingPolicy(auto_scale=True, max_replicas=20, target_concurrency=10)
    stretches = [(25.0, 100, 0.0), (25.0, 0, 0.0)] * 5
    done = steps(policy, stretches)
    assert {step.after for step in done if step.at_s > 25} == {10}


def test_doubling_at_least_four_every_two_seconds() -> None:
    policy = ScalingPolicy(auto_scale=True, max_replicas=100, target_concurrency=1)
    done = steps(policy, [(10.0, 100, 0.0)])
    assert [step.after for step in done[::4]] == [5, 10, 20, 40, 80]


def test_small_deviations_change_nothing() -> None:
    policy = ScalingPolicy(auto_scale=True, max_replicas=100, target_concurrency=10)
    assert {step.after for step in steps(policy, [(200.0, 109, 0.0)], 10)} == {10}
    assert {step.after for step in steps(policy, [(200.0, 92, 0.0)], 10)} == {10}
    assert steps(policy, [(30.0, 111, 0.0)], 10)[-1].after == 12


def test_cpu_alone_is_a_reason_while_there_are_calls() -> None:
    policy = ScalingPolicy(auto_scale=True, max_replicas=10, cpu_threshold_percent=50)
    assert steps(policy, [(30.0, 1, 2.0)])[-1].after == 4


def test_a_maximum_that_was_lowered_holds_at_once() -> None:
    policy = ScalingPolicy(auto_scale=True, max_replicas=3, target_concurrency=1)
    assert steps(policy, [(1.0, 50, 0.0)], 10)[0].after == 3
