"""Sending through every break there can be: nothing is told twice, nothing is left out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from agentruntime import errors
from agentruntime._proto.uapi.v1 import access_pb2 as access
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto

from tests.uapi_gateway.conversations.conversing import PIECES, PLACES, Standing, standing
from tests.waiting import eventually
from uapi_gateway.access.policy import EVERYTHING, Caller, Grant
from uapi_gateway.conversations.sending import SERVICE
from uapi_gateway.conversations.store import Key
from uapi_gateway.registry import Agent

LOCAL = Caller("local", (EVERYTHING,))
KINDS = ["message", "attempt", "chunk", "chunk", "chunk", "completion"]


@pytest_asyncio.fixture
async def sending(tmp_path: Path) -> AsyncIterator[Standing]:
    async with standing(tmp_path) as made:
        yield made


def asked(text: str = "Hi", **more: Any) -> proto.StreamMessageRequest:
    fields = {"conversation_id": "c", "message_id": "m", **more}
    return proto.StreamMessageRequest(message=proto.ChatMessage(parts=[proto.Part(text=text)]), **fields)


async def all_of(sending: Standing, request: proto.StreamMessageRequest | None = None) -> list[proto.Event]:
    return [response.event async for response in sending.sender.stream(LOCAL, "helper", request or asked())]


async def test_all_events_and_what_the_worker_is_told(sending: Standing) -> None:
    events = await all_of(sending)
    assert [event.WhichOneof("content") for event in events] == KINDS
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5, 6]
    told = sending.worker.calls[0]
    assert told["x-uapi-agent"] == "helper"
    assert told["x-uapi-conversation"] == "c"
    assert told["x-uapi-principal"] == "local"


@pytest.mark.parametrize("place", PLACES)
async def test_a_break_anywhere_leaves_no_gap_and_repeats_nothing(sending: Standing, place: str) -> None:
    sending.worker.breaks = [place]
    events = await all_of(sending)
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5, 6]
    # Only a message that never got to the log is sent once more.
    assert len(sending.worker.calls) == (2 if place == "nothing" else 1)
    assert {call["request"].message_id for call in sending.worker.calls} == {"m"}


async def test_a_log_that_is_away_is_waited_for(sending: Standing) -> None:
    sending.worker.breaks = ["logged"]
    away = errors.StoreUnavailable("the store cannot be reached")
    sending.log.failures = [away, away]
    assert [event.sequence for event in await all_of(sending)] == [1, 2, 3, 4, 5, 6]
    assert not sending.log.failures


async def test_a_message_that_was_deleted_meanwhile_is_not_waited_for(
    sending: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending.worker.gate.clear()
    sending.worker.breaks = ["told attempt"]
    watch, times = sending.log.watch, 0

    def watched(key: Key, *args: Any, **options: Any) -> Any:
        nonlocal times
        times += 1
        if times > 1:
            # Its conversation was begun anew before the Sender came to the log.
            other = proto.Event(message_id="other", message=proto.ChatMessage(), sequence=1)
            sending.log.events[key] = [other]
        return watch(key, *args, **options)

    monkeypatch.setattr(sending.log, "watch", watched)
    with pytest.raises(errors.MessageNotFound):
        await asyncio.wait_for(all_of(sending), 10)
    sending.worker.gate.set()


async def test_sent_again_by_its_id_it_is_told_again_and_not_handled_twice(sending: Standing) -> None:
    first = await all_of(sending)
    assert await all_of(sending) == first
    assert len(sending.log.events[Key("local", "helper", "c")]) == 6


@pytest.mark.parametrize("after", range(1, 7))
async def test_what_was_told_is_not_told_again(sending: Standing, after: int) -> None:
    await all_of(sending)
    stream = sending.sender.stream(LOCAL, "helper", asked(), after=after)
    assert [response.event.sequence async for response in stream] == list(range(after + 1, 7))
    assert len(sending.worker.calls) == 1


async def test_nothing_was_told_of_a_message_that_is_not_there(sending: Standing) -> None:
    stream = sending.sender.stream(LOCAL, "helper", asked(), after=3)
    assert [response.event.sequence async for response in stream] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "error",
    [
        errors.ConversationBusy("busy"),
        errors.AgentNotReady("no worker"),
        errors.Internal("a bug"),
        errors.AgentStopped("stopped"),
        errors.StoreUnavailable("the database is away"),
    ],
)
async def test_a_refusal_is_told_at_once(sending: Standing, error: errors.AgentError) -> None:
    sending.worker.refuses = error
    with pytest.raises(type(error)) as caught:
        await all_of(sending)
    assert caught.value.reason == error.reason
    assert len(sending.worker.calls) == 1


async def test_what_was_told_is_asked_of_a_log_that_is_away_once(sending: Standing) -> None:
    sending.log.failures = [errors.StoreUnavailable("the database is away")] * 2
    with pytest.raises(errors.StoreUnavailable):
        await anext(sending.sender.stream(LOCAL, "helper", asked(), after=3))
    assert (len(sending.log.failures), sending.worker.calls) == (1, [])


async def test_that_a_message_goes_on_is_said_of_one_that_was_taken(sending: Standing) -> None:
    sending.worker.breaks = ["logged"]
    sending.log.failures = [errors.StoreUnavailable("the database is away")] * 100
    with pytest.raises(errors.DeadlineExceeded, match="message m may have been taken, or not"):
        await sending.sender.collect(LOCAL, "helper", asked(), timeout_s=0.2)


async def test_one_that_never_arrives_is_given_up(sending: Standing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uapi_gateway.conversations.sending._LONGEST_PAUSE_S", 0.01)
    sending.worker.breaks = ["nothing"] * 100
    with pytest.raises(errors.Unavailable):
        await all_of(sending)
    assert len(sending.worker.calls) == 8


async def test_ids_are_made_where_none_are_given(sending: Standing) -> None:
    request = asked(conversation_id="", message_id="")
    reply = await sending.sender.collect(LOCAL, "helper", request)
    assert len(reply.conversation_id) == len(reply.message_id) == 36
    assert reply.message.parts[0].text == "".join(PIECES)
    assert (reply.sequence, reply.usage.prompt_tokens, reply.usage.completion_tokens) == (6, 3, 5)
    for bad in ({"conversation_id": "ü"}, {"message_id": "x" * 201}, {"conversation_id": "a\nb"}):
        with pytest.raises(errors.InvalidArgument):
            await sending.sender.collect(LOCAL, "helper", asked(**bad))


@pytest.mark.parametrize("place", ["", "logged"])
async def test_time_that_is_over_ends_the_wait_and_not_the_message(sending: Standing, place: str) -> None:
    sending.worker.gate.clear()
    sending.worker.breaks = [place]
    with pytest.raises(errors.DeadlineExceeded, match="message m goes on, send it again by that id"):
        await sending.sender.collect(LOCAL, "helper", asked(), timeout_s=0.2)
    sending.worker.gate.set()
    reply = await sending.sender.collect(LOCAL, "helper", asked())
    assert reply.sequence == 6


async def test_a_caller_that_goes_away_does_not_end_the_message(sending: Standing) -> None:
    sending.worker.gate.clear()
    async with aclosing(sending.sender.stream(LOCAL, "helper", asked())) as responses:
        await anext(responses)
    await eventually(lambda: sending.worker.ended == 1)
    sending.worker.gate.set()
    key = Key("local", "helper", "c")
    await eventually(lambda: len(sending.log.events[key]) == 6)


async def test_a_failure_is_raised_as_what_it_was_and_its_traceback_is_for_operators(sending: Standing) -> None:
    key = Key("local", "helper", "c")
    failure = proto.Failure(code=14, reason="MESSAGE_SET_ASIDE", message="it ended three workers", traceback="line 1")
    await sending.log.append(
        key, proto.Event(message_id="m", message=proto.ChatMessage()), proto.Event(message_id="m", failure=failure)
    )
    with pytest.raises(errors.MessageSetAside):
        await sending.sender.collect(LOCAL, "helper", asked())
    assert (await all_of(sending))[-1].failure.traceback == "line 1"
    sending.log.events = {Key("anonymous", "free", "c"): sending.log.events[key]}
    caller = Caller("anonymous", (Grant(access.ROLE_CALL, ("*",)),))
    sending.registry.put_pool_agent(Agent("free", (SERVICE,), ()))
    last = [response.event async for response in sending.sender.stream(caller, "free", asked())][-1]
    assert (last.failure.reason, last.failure.traceback) == ("MESSAGE_SET_ASIDE", "")


async def test_who_may_not_call_the_agent_does_not(sending: Standing) -> None:
    for caller, error in (
        (Caller("anonymous", (Grant(access.ROLE_CALL, ("*",)),)), errors.Unauthenticated),
        (Caller("key:other", (Grant(access.ROLE_CALL, ("plain",)),)), errors.PermissionDenied),
    ):
        with pytest.raises(error):
            await sending.sender.collect(caller, "helper", asked())
        assert (await sending.sender.collect(caller, "plain", asked())).sequence == 0
    assert not sending.worker.calls
    with pytest.raises(errors.AgentNotFound):
        await sending.sender.collect(LOCAL, "nobody", asked())


async def test_an_agent_that_only_generates_is_prompted(sending: Standing) -> None:
    responses = [each async for each in sending.sender.stream(LOCAL, "plain", asked("Hello"))]
    assert [each.event.WhichOneof("content") for each in responses] == ["message", "chunk", "chunk", "completion"]
    assert {each.event.sequence for each in responses} == {0}
    assert not sending.log.events
    said = [proto.ChatMessage(role="assistant", parts=[proto.Part(text="Yes?")])]
    reply = await sending.sender.collect(LOCAL, "plain", asked("Hello", earlier=said))
    assert reply.message.parts[0].text == "assistant: Yes?\nuser: Hello"
    assert reply.usage.completion_tokens == 2


async def test_nothing_is_told_of_a_prompt_that_is_refused(sending: Standing) -> None:
    sending.worker.refuses = errors.AgentNotReady("none is ready")
    responses = sending.sender.stream(LOCAL, "plain", asked("Hello"))
    with pytest.raises(errors.AgentNotReady):
        await anext(responses)


@pytest.mark.parametrize("number", ["inf", "nan", "3e9", "-1", "many"])
async def test_options_that_are_no_numbers(sending: Standing, number: str) -> None:
    for name in ("max_tokens", "temperature"):
        request = asked("Hello")
        request.message.metadata[name] = number
        with pytest.raises(errors.InvalidArgument, match=f"'{number}' is no {name}"):
            await sending.sender.collect(LOCAL, "plain", request)


async def test_an_agent_that_does_neither_says_so(sending: Standing) -> None:
    with pytest.raises(errors.NoConversations):
        await sending.sender.collect(LOCAL, "other", asked())


async def test_a_hundred_at_once(sending: Standing) -> None:
    sending.worker.breaks = list(PLACES) * 16
    every = await asyncio.gather(*(all_of(sending, asked(conversation_id=f"c{n}")) for n in range(100)))
    assert all([event.sequence for event in events] == [1, 2, 3, 4, 5, 6] for events in every)
