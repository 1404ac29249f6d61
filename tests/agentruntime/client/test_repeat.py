"""Which calls are made again, and when."""

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_pb2
from agentruntime.client.repeat import PATIENCE_S, Again, Attempts, declared_idempotent, may_repeat

GENERATE = "/uapi.v1.TextGenerationService/GenerateText"
RESTART = "/uapi.v1.AgentPool/RestartAgent"
RUN = "/uapi.v1.AgentPool/RunAgent"
FOREIGN = "/acme.v1.Greeter/Greet"


def lost(reason: str) -> errors.Unavailable:
    return errors.Unavailable("gone", reason=reason)


@pytest.mark.parametrize(
    ("method", "declared"),
    [
        (GENERATE, True),
        ("/uapi.v1.TextGenerationService/GetHealth", True),
        (RUN, True),
        (RESTART, False),
        ("/uapi.v1.AgentGateway/CallAgent", False),
        (FOREIGN, False),
        ("/uapi.v1.TextGenerationService/None", False),
        ("/", False),
    ],
)
def test_what_a_proto_declares(method: str, *, declared: bool) -> None:
    assert declared_idempotent(method) is declared


@pytest.mark.parametrize(
    ("method", "error", "again"),
    [
        (GENERATE, lost("CONNECTION_LOST"), Again(0.05, ask=True)),
        (GENERATE, lost("WORKER_LOST"), Again(0.05, ask=True)),
        (GENERATE, lost("WORKER_DRAINED"), Again(0.05, ask=True)),
        (GENERATE, lost("UNAVAILABLE"), Again(0.05, ask=True)),
        (GENERATE, lost("AGENT_NOT_READY"), Again(0.05, ask=False)),
        (GENERATE, lost("CIRCUIT_OPEN"), None),
        (GENERATE, lost("NOT_CONNECTED"), None),
        (GENERATE, errors.ResourceExhausted("full", reason="QUEUE_FULL"), None),
        (GENERATE, errors.Internal("bug"), None),
        (GENERATE, errors.DeadlineExceeded("late"), None),
        (FOREIGN, lost("CONNECTION_LOST"), None),
        (FOREIGN, lost("WORKER_LOST"), None),
        (FOREIGN, lost("UNAVAILABLE"), None),
        (FOREIGN, lost("AGENT_NOT_READY"), Again(0.05, ask=False)),
        (FOREIGN, errors.WorkerDraining("repeat it"), Again(0.05, ask=False)),
        (RUN, lost("CONNECTION_LOST"), Again(0.05, ask=False)),
        (RESTART, lost("CONNECTION_LOST"), None),
        (RESTART, lost("POOL_UNAVAILABLE"), Again(0.05, ask=False)),
    ],
)
def test_what_may_be_made_again(method: str, error: errors.AgentError, again: Again | None) -> None:
    assert Attempts(method, 30.0, 0.0, repeatable=True).again(error, 1.0, 1.0) == again
    assert Attempts(method, 30.0, 0.0, repeatable=False).again(error, 1.0, 1.0) is None


def test_delays_double_with_jitter() -> None:
    attempts = Attempts(GENERATE, None, 0.0, repeatable=True)
    delays = [attempts.again(lost("CONNECTION_LOST"), 0.0, draw) for draw in (1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0)]
    assert [again.delay_s for again in delays if again] == [0.05, 0.05, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_a_call_that_ends_its_worker_is_made_again_once() -> None:
    attempts = Attempts(GENERATE, None, 0.0, repeatable=True)
    assert attempts.again(lost("WORKER_LOST"), 0.0, 0.0)
    assert attempts.again(lost("AGENT_NOT_READY"), 0.1, 0.0)
    assert not attempts.again(lost("WORKER_LOST"), 0.2, 0.0)


def test_patience_begins_with_the_first_failure_of_a_call_that_was_under_way() -> None:
    attempts = Attempts(GENERATE, None, 0.0, repeatable=True)
    assert attempts.again(lost("CONNECTION_LOST"), 100.0, 0.0)
    assert attempts.again(lost("CONNECTION_LOST"), 100.0 + PATIENCE_S, 0.0)
    assert not attempts.again(lost("CONNECTION_LOST"), 100.1 + PATIENCE_S, 0.0)


def test_patience_begins_with_the_call_where_no_worker_was_reached() -> None:
    attempts = Attempts(GENERATE, None, 0.0, repeatable=True)
    assert attempts.again(lost("AGENT_NOT_READY"), PATIENCE_S, 0.0)
    # The relay has waited for one already.
    assert not attempts.again(lost("AGENT_NOT_READY"), 2 * PATIENCE_S, 0.0)


def test_the_deadline_is_that_of_all_attempts() -> None:
    attempts = Attempts(GENERATE, 2.0, 10.0, repeatable=True)
    assert attempts.left_s(10.5) == 1.5
    assert attempts.again(lost("CONNECTION_LOST"), 11.9, 1.0)
    assert not attempts.again(lost("CONNECTION_LOST"), 11.95, 1.0)
    assert attempts.left_s(13.0) == 0.0
    assert Attempts(GENERATE, None, 10.0, repeatable=True).left_s(99.0) is None


def agent(name: str, service: str, *, idempotent: bool = True) -> registry_pb2.AgentInfo:
    return registry_pb2.AgentInfo(agent_id=name, services=[service], idempotent=idempotent)


@pytest.mark.parametrize(
    ("agents", "allowed"),
    [
        ([agent("a", "s.S"), agent("b", "s.T", idempotent=False)], True),
        ([agent("a", "s.S"), agent("b", "s.S", idempotent=False)], False),
        ([agent("b", "s.T")], False),
        ([], False),
    ],
)
def test_without_a_name_every_agent_of_the_service_must_allow_it(
    agents: list[registry_pb2.AgentInfo], *, allowed: bool
) -> None:
    assert may_repeat(agents, "s.S") is allowed
