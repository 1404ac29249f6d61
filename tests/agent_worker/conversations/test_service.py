"""Conversations by way of a worker's gRPC server, on a log that keeps its word and one that does not."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.agent import Agent
from agentruntime.conversation import ChatMessage, Context, Part

from tests.agent_worker.conversations.log_server import LogServer
from tests.agent_worker.conversations.serving import WHO, Worker, called, caller, kinds, serving, text, working
from tests.waiting import eventually

KEY = (WHO, "c")


class Echo(Agent):
    async def on_message(self, message: ChatMessage, ctx: Context) -> AsyncIterator[str]:
        for word in message.text.split():
            yield word


class Held(Agent):
    """Answers when it is let; `begun` says how often it was begun."""

    begun: list[str]
    go: asyncio.Event

    async def on_message(self, message: ChatMessage, ctx: Context) -> str:
        Held.begun.append(message.text)
        if message.text == "boom":
            raise ValueError("inner")
        if message.text == "full":
            raise errors.ResourceExhausted("no more tea", metadata={"tea": "0"})
        await Held.go.wait()
        return f"re: {message.text}"


@pytest.fixture(autouse=True)
def _afresh() -> None:
    Held.begun, Held.go = [], asyncio.Event()


async def test_a_turn_is_two_writes_and_its_stream_is_what_is_on_disk(tmp_path: Path) -> None:
    async with serving(Echo, tmp_path) as (worker, log):
        events = await worker.events("a b", message="m1")
        assert kinds(events) == ["message", "attempt", "chunk", "chunk", "completion"] == log.texts(KEY)
        assert [event.sequence for event in events] == [1, 2, 3, 4, 5]
        assert events == log.kept[KEY].events
        assert (events[1].attempt.worker_id, text(events[4].completion)) == ("a-01", "ab")
        assert log.counts["append"] == 2
        answer = await worker.send("c d")
        assert (text(answer.reply), answer.sequence) == ("cd", 10)
        assert log.counts["append"] == 4
        assert log.counts["open"] == 1
        assert await worker.watched(after_sequence=5) == log.kept[KEY].events[5:]


async def test_one_at_a_time_and_others_beside(tmp_path: Path) -> None:
    async with serving(Held, tmp_path) as (worker, log):
        sends = [asyncio.create_task(worker.send(str(number), message=f"m{number}")) for number in range(3)]
        await eventually(lambda: KEY in log.kept and len(log.kept[KEY].messages) == 3)
        other = asyncio.create_task(worker.send("x", conversation="d"))
        await eventually(lambda: len(Held.begun) == 2)
        first = Held.begun[0]
        Held.go.set()
        answers = await asyncio.gather(*sends, other)
        assert [text(each.reply) for each in answers] == ["re: 0", "re: 1", "re: 2", "re: x"]
        kinds_ = log.texts(KEY)
        # The next one's beginning goes with the end of the one before.
        assert kinds_ == ["message", "attempt", "message", "message", *["completion", "attempt"] * 2, "completion"]
        assert log.counts["append"] == 6 + 2
        assert first in Held.begun


async def test_repeating_a_message_does_nothing_twice(tmp_path: Path) -> None:
    async with serving(Held, tmp_path) as (worker, log):
        twice = [asyncio.create_task(worker.send("once", message="m")) for _ in range(2)]
        await eventually(lambda: Held.begun == ["once"])
        stream = asyncio.create_task(worker.events("once", message="m"))
        Held.go.set()
        answers = await asyncio.gather(*twice)
        assert answers[0] == answers[1]
        assert kinds(await stream) == ["message", "attempt", "completion"]
        # And long after.
        assert await worker.send("once", message="m") == answers[0]
        assert kinds(await worker.events("other words", message="m")) == ["message", "attempt", "completion"]
        assert Held.begun == ["once"]
        assert len(log.kept[KEY].events) == 3


@pytest.mark.parametrize("by_request", [False, True])
async def test_busy_agents_may_reject(tmp_path: Path, by_request: bool) -> None:
    settings = {} if by_request else {"when_busy": "reject"}
    fields: Any = {"when_busy": proto.WHEN_BUSY_REJECT} if by_request else {}
    async with serving(Held, tmp_path, **settings) as (worker, _):
        first = asyncio.create_task(worker.send("1"))
        await eventually(lambda: Held.begun == ["1"])
        with pytest.raises(errors.ConversationBusy):
            await worker.send("2", **fields)
        Held.go.set()
        await first
        assert text((await worker.send("3", **fields)).reply) == "re: 3"


async def test_interruption_ends_what_runs_and_what_waits(tmp_path: Path) -> None:
    async with serving(Held, tmp_path, when_busy="interrupt", cancel_grace_s=0.05) as (worker, log):
        first = asyncio.create_task(worker.send("1"))
        await eventually(lambda: Held.begun == ["1"])
        second = asyncio.create_task(worker.send("2"))
        await eventually(lambda: len(log.kept[KEY].messages) == 2)
        third = asyncio.create_task(worker.send("3"))
        for interrupted in (first, second):
            with pytest.raises(errors.Cancelled):
                await interrupted
        await eventually(lambda: Held.begun == ["1", "3"])
        Held.go.set()
        assert text((await third).reply) == "re: 3"


async def test_cancelling_is_cooperative_first(tmp_path: Path) -> None:
    class Noticing(Agent):
        async def on_message(self, message: ChatMessage, ctx: Context) -> None:
            await ctx.reply("so far")
            await ctx.cancelled.wait()

    async with serving(Noticing, tmp_path, cancel_grace_s=20) as (worker, log):
        stream = asyncio.create_task(worker.events("1", message="m"))
        await eventually(lambda: KEY in log.kept and "chunk" in log.texts(KEY))
        request = proto.CancelMessageRequest(conversation_id="c", message_id="m")
        answer = await called(worker.stub.CancelMessage(request, timeout=5, metadata=caller()))
        assert answer.status == proto.MESSAGE_STATUS_RUNNING
        events = await stream
        assert kinds(events) == ["message", "attempt", "chunk", "cancellation", "failure"]
        assert events[-1].failure.reason == "CANCELLED"
        answer = await called(worker.stub.CancelMessage(request, timeout=5, metadata=caller()))
        assert answer.status == proto.MESSAGE_STATUS_CANCELLED


async def test_what_authors_raise_reaches_callers(tmp_path: Path) -> None:
    async with serving(Held, tmp_path) as (worker, log):
        with pytest.raises(errors.ResourceExhausted, match="no more tea") as full:
            await worker.send("full")
        assert full.value.metadata == {"tea": "0"}
        with pytest.raises(errors.Internal, match="request id"):
            await worker.send("boom")
        failure = (await worker.events("boom"))[-1].failure
        assert (failure.reason, failure.traceback) == ("INTERNAL", "")
        assert "ValueError: inner" in log.kept[KEY].events[-1].failure.traceback
        Held.go.set()
        assert text((await worker.send("fine")).reply) == "re: fine"


async def test_a_caller_that_hangs_up_ends_nothing(tmp_path: Path) -> None:
    async with serving(Held, tmp_path) as (worker, log):
        sending = asyncio.create_task(worker.send("1", message="m"))
        await eventually(lambda: Held.begun == ["1"])
        sending.cancel()
        Held.go.set()
        await eventually(lambda: log.kept[KEY].messages["m"].status == proto.MESSAGE_STATUS_COMPLETED)
        assert text((await worker.send("1", message="m")).reply) == "re: 1"
        assert Held.begun == ["1"]


@pytest.mark.parametrize("attempts", [0, 1, 3])
@pytest.mark.parametrize("policy", ["retry", "report"])
async def test_what_another_worker_left_goes_on(tmp_path: Path, attempts: int, policy: str) -> None:
    Held.go.set()
    async with serving(Held, tmp_path, on_worker_lost=policy) as (worker, log):
        left_behind(log, attempts)
        found = await called(
            worker.stub.GetConversation(
                proto.GetConversationRequest(conversation_id="c"), timeout=5, metadata=caller()
            )
        )
        assert [each.message_id for each in found.conversation.messages] == ["m"]
        await eventually(lambda: log.kept[KEY].messages["m"].last_sequence > 0)
        events = await worker.events("again", message="m")
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        end = events[-1]
        if attempts == 3:
            assert end.failure.reason == "MESSAGE_SET_ASIDE"
        elif attempts and policy == "report":
            assert end.failure.reason == "MESSAGE_AMBIGUOUS"
        else:
            assert (text(end.completion), events[-2].attempt.number) == ("re: hi", attempts + 1)
        assert text((await worker.send("next")).reply) == "re: next"


async def test_what_is_deleted_before_it_is_taken_up_is_not_made_anew(tmp_path: Path) -> None:
    async with serving(Held, tmp_path) as (worker, log):
        left_behind(log, 1)
        log.deleted_before_open = True
        asked = proto.GetConversationRequest(conversation_id="c")
        await called(worker.stub.GetConversation(asked, timeout=5, metadata=caller()))
        await eventually(lambda: log.counts["open"] == 1)
        await eventually(lambda: not held(worker))
        assert not log.kept
        # Whoever has something to say in it begins another, also while that is found out.
        left_behind(log, 1)
        log.deleted_before_open = True
        Held.go.set()
        await called(worker.stub.GetConversation(asked, timeout=5, metadata=caller()))
        assert text((await worker.send("new")).reply) == "re: new"
        assert Held.begun == ["new"]


def held(worker: Worker) -> bool:
    assert worker.server._conversations is not None
    return worker.server._conversations.find(*KEY) is not None


def left_behind(log: LogServer, attempts: int) -> None:
    """As a worker leaves a conversation that it has died in so often."""
    from tests.agent_worker.conversations.log_server import Kept

    kept = log.kept[KEY] = Kept()
    message = ChatMessage.of("hi").to_proto()
    kept.events.append(proto.Event(sequence=1, message_id="m", message=message))
    for number in range(1, attempts + 1):
        kept.events.append(proto.Event(sequence=number + 1, message_id="m", attempt=proto.Attempt(number=number)))
    kept.said["m"] = message
    status = proto.MESSAGE_STATUS_RUNNING if attempts else proto.MESSAGE_STATUS_PENDING
    kept.messages["m"] = proto.MessageInfo(message_id="m", status=status, attempts=attempts, first_sequence=1)


async def test_work_goes_on_while_the_log_is_away(tmp_path: Path) -> None:
    async with serving(Held, tmp_path) as (worker, log):
        running = asyncio.create_task(worker.events("1", message="m1"))
        await eventually(lambda: Held.begun == ["1"])
        await log.stop()
        Held.go.set()
        waiting = asyncio.create_task(worker.send("2"))
        await log.listen()
        events = await running
        assert [event.sequence for event in events] == [1, 2, 3]
        assert text((await waiting).reply) == "re: 2"
        assert {event.token for event in log.kept[KEY].events} == {1}


async def test_an_append_whose_answer_was_lost_is_not_repeated(tmp_path: Path) -> None:
    Held.go.set()
    async with serving(Held, tmp_path) as (worker, log):
        for number in range(6):
            log.cut_after_append = number % 2 == 1
            assert text((await worker.send(str(number))).reply) == f"re: {number}"
        assert len(log.kept[KEY].events) == 18
        assert Held.begun == [str(number) for number in range(6)]


async def test_a_store_that_is_away_is_waited_for(tmp_path: Path) -> None:
    async with serving(Held, tmp_path) as (worker, log):
        running = asyncio.create_task(worker.send("1"))
        await eventually(lambda: Held.begun == ["1"])
        log.away = True
        Held.go.set()
        before = log.counts["append"]
        await eventually(lambda: log.counts["append"] > before)
        log.away = False
        assert text((await running).reply) == "re: 1"


async def test_a_lease_that_somebody_had_meanwhile_is_given_up(tmp_path: Path) -> None:
    async with serving(Held, tmp_path) as (worker, log):
        running = asyncio.create_task(worker.send("1", message="m"))
        await eventually(lambda: Held.begun == ["1"])
        await log.stop()
        # Another worker took it up, and died over it.
        log.tokens += 1
        log.kept[KEY].token = log.tokens
        await log.listen()
        await eventually(lambda: Held.begun == ["1", "1"])
        Held.go.set()
        assert text((await running).reply) == "re: 1"
        attempts = [event.attempt.number for event in log.kept[KEY].events if event.HasField("attempt")]
        assert attempts == [1, 2]


async def test_idle_conversations_are_given_back_and_opened_again(tmp_path: Path) -> None:
    Held.go.set()
    async with serving(Held, tmp_path, idle_s=0.05) as (worker, log):
        await worker.send("1")
        await eventually(lambda: log.kept[KEY].holder is None)
        assert not worker.server._conversations._mailboxes  # type: ignore[union-attr]  # it has them
        assert text((await worker.send("2")).reply) == "re: 2"
        assert log.counts["open"] == 2


async def test_a_conversation_moves_to_the_worker_that_is_called(tmp_path: Path) -> None:
    async with serving(Held, tmp_path) as (worker, log), working(Held, log.path, "a-02") as other:
        first = asyncio.create_task(worker.send("1", message="m1"))
        await eventually(lambda: Held.begun == ["1"])
        behind = asyncio.create_task(worker.events("2", message="m2"))
        await eventually(lambda: len(log.kept[KEY].messages) == 2)
        moved = asyncio.create_task(other.send("3"))
        await eventually(lambda: log.counts["open"] == 2)
        Held.go.set()
        assert text((await first).reply) == "re: 1"
        assert text((await moved).reply) == "re: 3"
        # What waited is handled there, and told here.
        events = await behind
        assert kinds(events) == ["message", "attempt", "completion"]
        assert (events[1].attempt.worker_id, text(events[2].completion)) == ("a-02", "re: 2")
        tokens = [event.token for event in log.kept[KEY].events]
        assert tokens == sorted(tokens)


async def test_draining_finishes_what_runs_and_leaves_the_rest(tmp_path: Path) -> None:
    async with serving(Held, tmp_path) as (worker, log), working(Held, log.path, "a-02") as other:
        first = asyncio.create_task(worker.send("1", message="m1"))
        await eventually(lambda: Held.begun == ["1"])
        behind = asyncio.create_task(worker.send("2", message="m2"))
        await eventually(lambda: len(log.kept[KEY].messages) == 2)
        watching = asyncio.create_task(worker.watched(follow=True))
        await eventually(lambda: log.counts["watch"] == 1)
        draining = asyncio.create_task(worker.server.drain(20, asyncio.Event()))
        with pytest.raises(Exception, match="watch again"):
            await watching
        Held.go.set()
        assert text((await first).reply) == "re: 1"
        await eventually(lambda: log.kept[KEY].holder is None)
        taken_up = await other.send("2", message="m2")
        assert text(taken_up.reply) == "re: 2"
        assert await behind == taken_up
        await asyncio.wait_for(draining, 10)


@pytest.mark.parametrize("policy", ["retry", "report"])
async def test_what_a_drain_cuts_does_not_count(tmp_path: Path, policy: str) -> None:
    async with (
        serving(Held, tmp_path, on_worker_lost=policy) as (worker, log),
        working(Held, log.path, "a-02") as other,
    ):
        sending = asyncio.create_task(worker.send("1", message="m"))
        await eventually(lambda: Held.begun == ["1"])
        await worker.server.drain(0.05, asyncio.Event())
        with pytest.raises(errors.Unavailable):
            await sending
        await eventually(lambda: log.kept[KEY].holder is None)
        Held.go.set()
        if policy == "report":
            assert log.kept[KEY].events[-1].failure.reason == "MESSAGE_AMBIGUOUS"
            return
        assert log.texts(KEY) == ["message", "attempt", "interruption"]
        events = await other.events("1", message="m")
        assert kinds(events) == ["message", "attempt", "interruption", "attempt", "completion"]
        assert [event.attempt.number for event in events if event.HasField("attempt")] == [1, 1]


async def test_deleting_ends_what_runs(tmp_path: Path) -> None:
    async with serving(Held, tmp_path) as (worker, _):
        running = asyncio.create_task(worker.send("1"))
        await eventually(lambda: Held.begun == ["1"])
        request = proto.DeleteConversationRequest(conversation_id="c")
        await called(worker.stub.DeleteConversation(request, timeout=5, metadata=caller()))
        with pytest.raises(errors.ConversationNotFound):
            await running
        Held.go.set()
        assert (await worker.send("anew")).sequence == 3
        listed = await called(
            worker.stub.ListConversations(proto.ListConversationsRequest(), timeout=5, metadata=caller())
        )
        assert [each.conversation_id for each in listed.conversations] == ["c"]


async def test_messages_share_the_slots_and_wait_without_having_begun(tmp_path: Path) -> None:
    async with serving(Held, tmp_path, concurrency=1, queue=1) as (worker, log):
        first = asyncio.create_task(worker.send("1", conversation="a"))
        await eventually(lambda: Held.begun == ["1"])
        second = asyncio.create_task(worker.send("2", conversation="b"))
        await eventually(lambda: (WHO, "b") in log.kept and bool(log.kept[WHO, "b"].events))
        assert log.texts((WHO, "b")) == ["message"]
        with pytest.raises(errors.QueueFull):
            await worker.send("3", conversation="d")
        Held.go.set()
        assert text((await first).reply) == "re: 1"
        assert text((await second).reply) == "re: 2"


async def test_without_a_log_it_says_what_to_do() -> None:
    async with working(Echo, "") as worker:
        with pytest.raises(errors.Unavailable, match="agent up"):
            await worker.send("1")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"conversation": "\n"}, "conversation_id must be"),
        ({"message": "x" * 201}, "message_id must be"),
    ],
)
async def test_ids_are_checked(tmp_path: Path, fields: dict[str, str], said: str) -> None:
    async with serving(Echo, tmp_path) as (worker, _):
        with pytest.raises(errors.InvalidArgument, match=said):
            await worker.send("hi", **fields)


async def test_what_was_said_before_begins_a_new_conversation(tmp_path: Path) -> None:
    class Recalling(Agent):
        async def on_message(self, message: ChatMessage, ctx: Context) -> str:
            return " ".join(f"{each.role}:{each.text}" for each in await ctx.history(3)) or "nothing"

    earlier = [ChatMessage.of("be kind", "system").to_proto()]
    async with serving(Recalling, tmp_path) as (worker, log):
        assert text((await worker.send("1", earlier=earlier)).reply) == "system:be kind"
        events = await worker.events("2", earlier=earlier)
        assert kinds(events) == ["message", "attempt", "completion"]
        assert text(events[-1].completion) == "system:be kind user:1 assistant:system:be kind"
        assert log.texts(KEY)[0] == "earlier"
        again = text((await worker.send("3")).reply)
        assert again.startswith("assistant:system:be kind user:2 assistant:")


async def test_state_is_kept_and_set_by_comparing(tmp_path: Path) -> None:
    class Counting(Agent):
        async def on_message(self, message: ChatMessage, ctx: Context) -> str:
            if message.text == "stale":
                await ctx.set_state(0, expected_version=0)
            version = await ctx.set_state({"count": (ctx.state or {"count": 0})["count"] + 1})
            return f"{ctx.state['count']} {version} {ctx.state_version}"

    async with serving(Counting, tmp_path, idle_s=0.05) as (worker, log):
        assert text((await worker.send("1")).reply) == "1 1 1"
        await eventually(lambda: log.kept[KEY].holder is None)
        assert text((await worker.send("2")).reply) == "2 2 2"
        with pytest.raises(errors.StateConflict):
            await worker.send("stale")
        assert log.kept[KEY].state == b'{"count":2}'


async def test_tools_and_parts_are_recorded(tmp_path: Path) -> None:
    class Working(Agent):
        async def on_message(self, message: ChatMessage, ctx: Context) -> Part:
            async with ctx.tool_call("search", {"q": message.text}) as call:
                call.result([1, "two"])
            await ctx.reply("found: ")
            await ctx.reply("it")
            return Part(data={"a": 1})

    async with serving(Working, tmp_path) as (worker, _):
        events = await worker.events("x")
        assert kinds(events) == ["message", "attempt", "tool_call", "tool_call", "chunk", "chunk", "completion"]
        assert events[2].tool_call.call_id == events[3].tool_call.call_id
        parts = ChatMessage.of_proto(events[-1].completion).parts
        assert parts == (Part(text="found: it"), Part(data={"a": 1}))


async def test_a_reply_that_is_too_long_fails(tmp_path: Path) -> None:
    class Endless(Agent):
        async def on_message(self, message: ChatMessage, ctx: Context) -> AsyncIterator[str]:
            while True:
                yield "x" * 100_000

    async with serving(Endless, tmp_path) as (worker, _):
        with pytest.raises(errors.MessageTooLarge):
            await worker.send("go")
