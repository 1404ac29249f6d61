"""Which workers come and go, which revisions are kept, which policies hold."""

import pytest
from agentruntime import errors

from agent_pool.asked import AskedHealth, AskedPolicies, AskedTraffic
from agent_pool.deployment import CONVERSATIONS
from agent_pool.drivers.base import Prepared
from agent_pool.health import HealthPolicy
from agent_pool.lifecycle import Event, State
from agent_pool.policies import TrafficPolicy
from agent_pool.revision import Program
from agent_pool.scaling.policy import AskedScaling
from tests.agent_pool.test_state import deployment, spec


def test_new_workers_take_the_lowest_numbers() -> None:
    made = deployment()
    made.new_workers(2)
    assert sorted(made.workers) == ["a-01", "a-02", "a-03"]
    del made.workers["a-02"]
    assert [worker.worker_id for worker in made.new_workers(2)] == ["a-02", "a-04"]


def test_a_successor_has_the_name_of_the_one_whose_place_it_takes() -> None:
    made = deployment()
    made.new_workers(1)
    one, other = made.new_workers(2, places=[2])
    assert [(one.worker_id, one.key), (other.worker_id, other.key)] == [("a-02", "a-02~1"), ("a-03", "a-03")]
    assert made.named("a-02") is one  # the newest
    made.workers["a-02"].state = State.READY
    assert made.named("a-02") is made.workers["a-02"]  # the one that takes calls
    one.state = State.READY
    assert made.named("a-02") is one
    del made.workers["a-02"]
    (next_one,) = made.new_workers(1, places=[2])
    assert next_one.key == "a-02"
    assert made.named("a-09") is None


def test_surplus_goes_from_the_top_and_what_failed_goes_first() -> None:
    made = deployment()
    made.new_workers(3)
    made.replicas = 2
    assert [worker.worker_id for worker in made.surplus()] == ["a-04", "a-03"]
    made.workers["a-01"].apply(Event.FAIL)
    assert [worker.worker_id for worker in made.surplus()] == ["a-01", "a-04"]
    made.workers["a-04"].apply(Event.DRAIN)
    assert [worker.worker_id for worker in made.surplus()] == ["a-01"]


def test_an_agent_that_sleeps_or_is_stopped_wants_no_workers() -> None:
    made = deployment()
    assert made.target == 2
    made.asleep = True
    assert made.target == 0
    assert len(made.surplus()) == 1
    made.asleep, made.stopped = False, True
    assert made.target == 0


def test_ten_revisions_are_kept_and_those_that_run() -> None:
    made = deployment()
    made.new_workers(1, revision=2)
    for number in range(4, 30):
        made.turn_to(spec(number))
    assert sorted(made.revisions) == [2, 3, *range(22, 30)]
    assert made.current == 29
    assert made.next_number() == 30


def test_policies_are_what_was_ever_asked_over_what_the_images_agent_yaml_says() -> None:
    made = deployment()
    assert made.policies.health == HealthPolicy(retries=7)
    assert made.take_up(AskedPolicies(traffic=AskedTraffic("sticky")))
    assert not made.take_up(AskedPolicies(traffic=AskedTraffic("sticky")))
    manifest = AskedPolicies(health=AskedHealth(retries=2, interval_s=1.0), traffic=AskedTraffic("round-robin", 3))
    made.turn_to(spec(4, program=Program(entrypoint="m:C", policies=manifest)))
    assert made.policies.health == HealthPolicy(retries=7, interval_s=1.0)
    assert made.policies.traffic == TrafficPolicy("sticky", 3)
    with pytest.raises(errors.InvalidArgument):
        made.take_up(AskedPolicies(scaling=AskedScaling(min_replicas=50)))
    assert made.policies.scaling.min_replicas == 1


def test_an_agent_that_converses_is_sticky_unless_somebody_says_otherwise() -> None:
    made = deployment()
    made.turn_to(spec(4, prepared=Prepared((CONVERSATIONS,))))
    assert made.policies.traffic == TrafficPolicy("sticky")
    made.take_up(AskedPolicies(traffic=AskedTraffic("round-robin")))
    assert made.policies.traffic == TrafficPolicy("round-robin")


def test_that_an_agent_converses_is_known_once_its_code_is_loaded() -> None:
    made = deployment()
    made.turn_to(spec(4))
    assert made.policies.traffic == TrafficPolicy()
    made.keep(spec(4, prepared=Prepared((CONVERSATIONS,))))
    assert made.policies.traffic == TrafficPolicy("sticky")
    # Of another revision it does not matter.
    made.keep(spec(5))
    assert made.policies.traffic == TrafficPolicy("sticky")
