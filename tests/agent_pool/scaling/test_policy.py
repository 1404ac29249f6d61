"""What is asked of scaling, merged and checked."""

import pytest
from agentruntime import errors
from agentruntime.sections import ScalingSection

from agent_pool.scaling.policy import AskedScaling, ScalingPolicy


def test_defaults_are_those_of_the_proto() -> None:
    assert AskedScaling().policy(concurrency=64) == ScalingPolicy(
        auto_scale=False,
        min_replicas=0,
        max_replicas=10,
        cpu_threshold_percent=80.0,
        target_concurrency=48.0,
        idle_timeout_s=300.0,
    )
    assert AskedScaling().policy(concurrency=4).target_concurrency == 3.0


def test_the_request_is_over_agent_yaml() -> None:
    manifest = AskedScaling.of_manifest(
        ScalingSection.model_validate({"auto_scale": True, "cpu_threshold": 50, "idle_timeout": "2m"})
    )
    policy = AskedScaling(auto_scale=False, max_replicas=3).over(manifest).policy(8)
    assert policy == ScalingPolicy(False, 0, 3, 50.0, 6.0, 120.0)
    assert policy.may_sleep
    assert not AskedScaling(min_replicas=1).policy(8).may_sleep


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (AskedScaling(min_replicas=11), "raise --max"),
        (AskedScaling(max_replicas=0), "between 1 and 1000"),
        (AskedScaling(max_replicas=1001), "between 1 and 1000"),
        (AskedScaling(cpu_threshold_percent=0), "CPU threshold"),
        (AskedScaling(cpu_threshold_percent=101), "CPU threshold"),
        (AskedScaling(target_concurrency=float("nan")), "target concurrency"),
        (AskedScaling(target_concurrency=0), "target concurrency"),
        (AskedScaling(idle_timeout_s=0), "idle timeout"),
        (AskedScaling(idle_timeout_s=float("inf")), "idle timeout"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: AskedScaling, says: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=says):
        asked.policy(64)


def test_how_many_an_operator_may_ask_for() -> None:
    ScalingPolicy().check_replicas(0)
    ScalingPolicy(max_replicas=3).check_replicas(50)
    scales = ScalingPolicy(auto_scale=True, min_replicas=2, max_replicas=3)
    scales.check_replicas(3)
    for replicas, says in ((0, "never sleeps"), (1, "turn auto-scaling off"), (4, "maximum of 3")):
        with pytest.raises(errors.InvalidArgument, match=says):
            scales.check_replicas(replicas)
