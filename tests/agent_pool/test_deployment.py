"""Which workers come and go, and which settings differ."""

from agent_pool.deployment import Asked
from agent_pool.lifecycle import Event
from agent_pool.resources import Requested
from tests.agent_pool.test_state import deployment


def test_new_workers_take_the_lowest_numbers() -> None:
    made = deployment()
    made.new_workers(2)
    assert sorted(made.workers) == ["a-01", "a-02", "a-03"]
    del made.workers["a-02"]
    assert [worker.worker_id for worker in made.new_workers(2)] == ["a-02", "a-04"]


def test_surplus_goes_from_the_top_and_what_failed_goes_first() -> None:
    made = deployment()
    made.new_workers(3)
    made.replicas = 2
    assert [worker.worker_id for worker in made.surplus()] == ["a-04", "a-03"]
    made.workers["a-01"].apply(Event.FAIL)
    assert [worker.worker_id for worker in made.surplus()] == ["a-01", "a-04"]
    made.workers["a-04"].apply(Event.DRAIN)
    assert [worker.worker_id for worker in made.surplus()] == ["a-01"]


def test_what_a_request_leaves_out_does_not_differ() -> None:
    running = Asked(resources=Requested(memory_bytes=1), network="host", env={"a": "b"})
    assert Asked().differs_from(running) == []
    assert running.differs_from(running) == []
    other = Asked(resources=Requested(memory_bytes=2), network="isolated", log_level="DEBUG")
    assert other.differs_from(running) == ["memory_bytes", "network", "log_level"]
