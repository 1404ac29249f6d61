"""Each process's own end, whatever is heard of others of its name."""

from uapi_gateway.conversations.ends import Ends
from uapi_gateway.registry import Agent, Endpoint, Registry


def test_each_process_has_the_end_that_is_heard_next() -> None:
    registry = Registry()
    ends = Ends(registry)
    processes = []
    for status in (10, 20, 20, 30):
        processes.append(ends.of("a-01"))
        other = ends.of("a-02")
        _put(registry, Endpoint("", False, "a-01", failure=f"exit status {status}", traceback=f"T{status}"))
        # News of another, by which this one is told of once more.
        failed = Endpoint("", False, "a-01", failure=f"exit status {status}", traceback=f"T{status}")
        after = ends.of("a-01")
        _put(registry, failed, Endpoint("", False, "a-02", failure="killed by signal 9"))
        assert not after.worker.reason
        assert other.worker.reason == "worker a-02 ended: killed by signal 9"
        del after
        _put(registry, Endpoint("unix:/s", True, "a-01"))
    assert [(each.worker.reason, each.worker.traceback) for each in processes] == [
        (f"worker a-01 ended: exit status {status}", f"T{status}") for status in (10, 20, 20, 30)
    ]


def _put(registry: Registry, *endpoints: Endpoint) -> None:
    registry.put_pool_agent(Agent("a", (), endpoints))
