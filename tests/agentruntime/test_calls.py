"""What the calls that a worker makes inherit from the one that it handles."""

import math
from collections.abc import Iterator

import pytest
from agentruntime import calls
from agentruntime.client.policy import CallPolicy
from agentruntime.client.target import Target


@pytest.fixture(autouse=True)
def a_worker() -> Iterator[None]:
    calls.attach("/run/uapi/s")
    yield
    calls.attach("")
    calls.current.set(None)


def _policy(address: str = "unix:/run/uapi/s") -> CallPolicy:
    return CallPolicy.of(Target(address, secure=False, local=True, token="", timeout_s=30.0), "b")


def test_system_calls_end_with_the_call_that_is_handled() -> None:
    assert _policy().deadline_s(None) == 30.0
    calls.enter([("x-uapi-chain", ",a")], 5.0)
    for given, most in ((None, 5.0), (math.inf, 5.0), (60.0, 5.0), (2.0, 2.0)):
        found = _policy().deadline_s(given)
        assert found is not None
        assert most - 1 < found <= most
    assert dict(_policy().metadata(None))["x-uapi-chain"] == ",a"
    calls.enter([], -1.0)
    assert _policy().deadline_s(None) == 0.001
    calls.enter(None, None)
    assert _policy().deadline_s(math.inf) is None
    assert "x-uapi-chain" not in dict(_policy().metadata(None))


def test_other_clients_do_not() -> None:
    calls.enter([("x-uapi-chain", ",a")], 5.0)
    elsewhere = _policy("localhost:50051")
    assert elsewhere.deadline_s(None) == 30.0
    assert "x-uapi-chain" not in dict(elsewhere.metadata(None))
