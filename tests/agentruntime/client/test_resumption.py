"""When a stream goes on, and when not."""

import math
from typing import Any

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.client.resumption import PATIENCE_S, Resumption, Until

LOST = errors.Unavailable("the worker ended", reason="WORKER_LOST")
NOT_READY = errors.AgentNotReady("no worker is ready")


def event(sequence: int, **content: Any) -> proto.Event:
    return proto.Event(sequence=sequence, **(content or {"chunk": proto.Part(text="x")}))


def test_each_event_is_handed_over_once_and_in_order() -> None:
    resumption = Resumption(Until.MESSAGE, 0, 30.0, 0.0)
    assert [resumption.heard(event(number)) for number in (1, 2, 2, 1, 5)] == [True, True, False, False, True]
    assert (resumption.sequence, resumption.ended) == (5, False)
    assert resumption.heard(event(6, failure=proto.Failure()))
    assert resumption.ended


def test_delays_grow_until_something_is_heard() -> None:
    resumption = Resumption(Until.MESSAGE, 0, None, 0.0)
    assert [resumption.delay_s(LOST, 0.0, 1.0) for _ in range(7)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert resumption.failure is LOST
    resumption.heard(event(1))
    assert resumption.failure is None
    assert resumption.delay_s(LOST, 50.0, 0.0) == 0.025


def test_each_call_has_what_is_left_and_waits_for_a_connection_only_if_none_has_failed() -> None:
    resumption = Resumption(Until.MESSAGE, 0, 30.0, 100.0)
    assert resumption.options(100.0) == {"timeout": 30.0, "wait_for_ready": None}
    resumption.delay_s(LOST, 110.0, 1.0)
    assert resumption.options(110.0) == {"timeout": 20.0, "wait_for_ready": False}
    assert resumption.options(140.0)["timeout"] == 0.0
    assert Resumption(Until.FOREVER, 0, None, 0.0).options(1000.0)["timeout"] == math.inf


@pytest.mark.parametrize(
    "error",
    [
        errors.MessageAmbiguous("the worker ended"),
        errors.MessageSetAside("it ended three workers"),
        errors.CircuitOpen("no"),
        errors.ConversationNotFound("no"),
        errors.Aborted("no"),
        errors.Cancelled("no"),
    ],
)
def test_what_is_final(error: errors.AgentError) -> None:
    with pytest.raises(type(error)) as raised:
        Resumption(Until.MESSAGE, 0, 30.0, 0.0).delay_s(error, 0.0, 0.5)
    assert raised.value is error


def test_patience_ends() -> None:
    resumption = Resumption(Until.FOREVER, 0, None, 0.0)
    resumption.delay_s(LOST, 100.0, 0.5)
    resumption.delay_s(LOST, 100.0 + PATIENCE_S, 0.5)
    with pytest.raises(errors.Unavailable, match="the worker ended"):
        resumption.delay_s(LOST, 100.1 + PATIENCE_S, 0.5)


def test_an_agent_that_never_was_there_is_said_soon() -> None:
    resumption = Resumption(Until.MESSAGE, 0, None, 0.0)
    resumption.delay_s(NOT_READY, 4.9, 0.5)
    with pytest.raises(errors.AgentNotReady):
        resumption.delay_s(NOT_READY, 5.1, 0.5)
    # Not one that may have the message.
    resumption = Resumption(Until.MESSAGE, 0, None, 0.0)
    resumption.delay_s(LOST, 1.0, 0.5)
    resumption.delay_s(NOT_READY, 5.1, 0.5)


def test_the_time_is_that_of_all_calls_together() -> None:
    resumption = Resumption(Until.MESSAGE, 0, 30.0, 100.0)
    assert [resumption.options(now_s)["timeout"] for now_s in (110.0, 200.0)] == [20.0, 0.0]
    with pytest.raises(
        errors.DeadlineExceeded, match=r"not done within 30 s; .*; the attempt before failed: the worker ended"
    ):
        resumption.delay_s(LOST, 129.99, 0.5)
    resumption = Resumption(Until.NOW, 0, 30.0, 100.0)
    with pytest.raises(errors.DeadlineExceeded, match=r"not all there within 30 s$"):
        resumption.delay_s(errors.DeadlineExceeded("x"), 130.0, 0.5)
    with pytest.raises(errors.DeadlineExceeded, match="of the call that waits"):
        Resumption(Until.FOREVER, 0, None, 0.0).delay_s(errors.DeadlineExceeded("of the call that waits"), 1.0, 0.5)


def test_where_a_stream_may_end() -> None:
    now = Resumption(Until.NOW, 0, None, 0.0)
    now.closed()
    assert now.ended
    for until in (Until.MESSAGE, Until.FOREVER):
        resumption = Resumption(until, 0, None, 0.0)
        with pytest.raises(errors.Unavailable, match="before its last event") as cut:
            resumption.closed()
        assert resumption.delay_s(cut.value, 0.0, 0.5)
    assert not Resumption(Until.FOREVER, 0, None, 0.0).ends_with(event(1, completion=proto.ChatMessage()))


def test_that_a_message_goes_on_is_said_of_one_that_was_heard_of() -> None:
    late = errors.DeadlineExceeded("x")
    resumption = Resumption(Until.MESSAGE, 0, 30.0, 0.0)
    with pytest.raises(errors.DeadlineExceeded, match="not known whether the message was taken; send it again"):
        resumption.delay_s(late, 30.0, 0.5)
    resumption.heard(event(1))
    with pytest.raises(errors.DeadlineExceeded, match="the message goes on without its caller"):
        resumption.delay_s(late, 30.0, 0.5)


def test_a_store_that_is_away_is_said_when_the_worker_has_waited_for_it() -> None:
    away = errors.StoreUnavailable("the database is away")
    with pytest.raises(errors.StoreUnavailable):
        Resumption(Until.MESSAGE, 0, 30.0, 0.0).delay_s(away, 10.1, 0.5)
    heard = Resumption(Until.MESSAGE, 0, 30.0, 0.0)
    heard.heard(event(1))
    assert heard.delay_s(away, 10.1, 0.5)
