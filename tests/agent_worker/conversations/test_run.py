"""What a handler says and how it ends, with the runs that a mailbox makes of messages made here."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto

from agent_worker.conversations import endings
from agent_worker.conversations.log import LogClient
from agent_worker.conversations.message import Message
from agent_worker.conversations.outbox import Outbox, Write
from agent_worker.conversations.run import Run
from tests.waiting import eventually

Handle = Callable[[Run], Coroutine[Any, Any, proto.Event]]


class Made:
    """A run, what it has written, which stays in its outbox, and how it ended."""

    def __init__(self, handle: Handle, grace_s: float = 20) -> None:
        self.outbox = Outbox("key:alice", "c", LogClient(""), away=lambda: None, lost=lambda: None)
        self.last: list[str] = []
        self.message = Message("m", proto.ChatMessage(role="user"))
        self.run = Run(self.message, self.outbox, handle=handle, finished=self._finished, cancel_grace_s=grace_s)

    def _finished(self, message: Message, *last: proto.Event) -> None:
        assert message is self.message
        self.last += [str(event.WhichOneof("content")) for event in last]

    @property
    def written(self) -> list[str]:
        return [str(event.WhichOneof("content")) for write in self.outbox._writes for event in write.events]


async def replies(run: Run) -> proto.Event:
    run.say(proto.Event(message_id="m", chunk=proto.Part(text="re")))
    return proto.Event(message_id="m", completion=proto.ChatMessage())


async def test_what_its_handler_says_is_written_and_the_end_is_told() -> None:
    made = Made(replies)
    assert made.run.attempt("a-01").attempt == proto.Attempt(number=1, worker_id="a-01")
    made.run.start()
    await eventually(lambda: made.last == ["completion"])
    assert made.written == ["chunk"]


async def test_one_that_was_cancelled_before_it_starts_calls_no_handler() -> None:
    made = Made(replies)
    made.message.is_cancelled = True
    made.run.cancel()
    made.run.start()
    assert made.last == ["cancellation", "failure"]
    assert made.written == []


async def test_one_that_was_given_up_before_it_starts_calls_no_handler() -> None:
    made = Made(replies)
    assert made.run.give_up() is None
    made.run.start()
    assert made.message.is_stored
    assert (made.written, made.last) == ([], [])


async def test_a_handler_that_takes_no_notice_is_cut_again() -> None:
    cuts = 0

    async def stubborn(run: Run) -> proto.Event:
        nonlocal cuts
        await run.cancelled.wait()
        while cuts < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cuts += 1
        return endings.cancelled(run.message)

    made = Made(stubborn, grace_s=0.01)
    made.run.start()
    made.run.cancel()
    await eventually(lambda: made.last == ["failure"])
    assert made.written == ["cancellation"]


async def test_of_one_that_cannot_be_written_nothing_more_is() -> None:
    refused: list[errors.AgentError | None] = []

    async def goes_on(run: Run) -> proto.Event:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()
        run.say(proto.Event(message_id="m", chunk=proto.Part(text="late")))
        run.put(Write(run.message, [proto.Event()], refused=refused.append))
        return proto.Event(message_id="m", completion=proto.ChatMessage())

    made = Made(goes_on)
    made.run.start()
    await asyncio.sleep(0)
    made.run.unwritable(errors.ResourceExhausted("the conversation is full"))
    await eventually(lambda: made.last == ["failure"])
    assert made.written == []
    assert isinstance(refused[0], errors.FailedPrecondition)


async def test_one_that_is_given_up_ends_unheard() -> None:
    made = Made(replies)
    made.run.start()
    task = made.run.give_up()
    assert task is not None
    await asyncio.wait([task])
    assert (made.written, made.last) == ([], [])
