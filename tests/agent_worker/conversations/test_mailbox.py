"""What becomes of messages and leases when several things happen at once."""

import asyncio
from pathlib import Path

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.agent import Agent
from agentruntime.conversation import ChatMessage, Context

from agent_worker.conversations import mailboxes
from agent_worker.conversations.mailbox import Mailbox
from tests.agent_worker.conversations.serving import WHO, Worker, called, caller, kinds, serving, text, working
from tests.waiting import eventually

KEY = (WHO, "c")
MOST_BYTES = 4 * 2**20 - 64 * 1024


class Held(Agent):
    """Answers when it is let; `begun` says how often it was begun."""

    begun: list[str]
    go: asyncio.Event

    async def on_message(self, message: ChatMessage, ctx: Context) -> str:
        Held.begun.append(message.text[:9])
        await Held.go.wait()
        return f"re: {message.text[:9]}"


@pytest.fixture(autouse=True)
def _afresh() -> None:
    Held.begun, Held.go = [], asyncio.Event()


def at_hand(worker: Worker, conversation: str = "c") -> Mailbox:
    assert worker.server._conversations is not None
    mailbox = worker.server._conversations.find(WHO, conversation)
    assert mailbox is not None
    return mailbox


async def cancel(worker: Worker, message: str) -> None:
    request = proto.CancelMessageRequest(conversation_id="c", message_id=message)
    await called(worker.stub.CancelMessage(request, timeout=5, metadata=caller()))


async def test_what_was_given_up_before_it_was_on_disk_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailboxes, "_LAST_WORDS_S", 20)
    async with serving(Held, tmp_path) as (worker, log):
        Held.go.set()
        await worker.send("0")
        mailbox = at_hand(worker)
        log.holds.clear()
        frames = log.counts["frames"]
        sending = asyncio.create_task(worker.send("1", message="m"))
        await eventually(lambda: log.counts["frames"] > frames)
        assert mailbox.current is not None
        draining = asyncio.create_task(worker.server.drain(0.05, asyncio.Event()))
        await eventually(lambda: mailbox.current is None)
        log.holds.set()
        await asyncio.wait_for(draining, 10)
        with pytest.raises(errors.Unavailable):
            await sending
        assert Held.begun == ["0"]
        assert log.texts(KEY)[3:] == ["message", "attempt", "interruption"]


@pytest.mark.parametrize("when_busy", ["queue", "interrupt"])
async def test_what_waits_fits_a_frame_together(tmp_path: Path, when_busy: str) -> None:
    async with serving(Held, tmp_path, when_busy=when_busy, cancel_grace_s=20) as (worker, log):
        large = "x" * (MOST_BYTES - 100)
        tasks = [asyncio.create_task(worker.send(large))]
        await eventually(lambda: len(Held.begun) == 1)
        # While the log does not answer, nothing that is interrupted ends.
        log.holds.clear()
        tasks.append(asyncio.create_task(worker.send(large)))
        await eventually(lambda: len(at_hand(worker).waiting) == 1)
        with pytest.raises(errors.TooManyMessages, match="send again"):
            await worker.send(large)
        log.holds.set()
        Held.go.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert text((await worker.send("later")).reply) == "re: later"


async def test_no_more_than_so_many_wait_whatever_the_policy(tmp_path: Path) -> None:
    async with serving(Held, tmp_path, when_busy="interrupt") as (worker, log):
        tasks = [asyncio.create_task(worker.send("0"))]
        await eventually(lambda: Held.begun == ["0"])
        log.holds.clear()
        tasks += [asyncio.create_task(worker.send(f"{number}")) for number in range(100)]
        await eventually(lambda: len(at_hand(worker).waiting) == 100)
        with pytest.raises(errors.TooManyMessages):
            await worker.send("x")
        log.holds.set()
        Held.go.set()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_refused_message_leaves_no_lease(tmp_path: Path) -> None:
    async with serving(Held, tmp_path, concurrency=1, queue=0, idle_s=0.05) as (worker, log):
        first = asyncio.create_task(worker.send("1", conversation="a"))
        await eventually(lambda: Held.begun == ["1"])
        with pytest.raises(errors.QueueFull):
            await worker.send("2")
        await eventually(lambda: log.kept[KEY].holder is None)
        Held.go.set()
        await first


async def test_a_lease_that_comes_to_a_worker_that_drains_is_given_back(tmp_path: Path) -> None:
    async with serving(Held, tmp_path) as (worker, log):
        other = asyncio.create_task(worker.send("0", conversation="other"))
        await eventually(lambda: Held.begun == ["0"])
        log.holds.clear()
        frames = log.counts["frames"]
        sending = asyncio.create_task(worker.send("1"))
        await eventually(lambda: log.counts["frames"] > frames)
        draining = asyncio.create_task(worker.server.drain(20, asyncio.Event()))
        with pytest.raises(errors.WorkerDraining):
            await sending
        log.holds.set()
        await eventually(lambda: log.counts["release"] == 1)
        assert log.kept[KEY].holder is None
        Held.go.set()
        await asyncio.gather(other, draining)


async def test_a_lease_whose_log_is_not_as_it_was_left_is_given_back(tmp_path: Path) -> None:
    async with serving(Held, tmp_path) as (worker, log):
        Held.go.set()
        await worker.send("0")
        log.holds.clear()
        frames = log.counts["frames"]
        sending = asyncio.create_task(worker.send("1"))
        await eventually(lambda: log.counts["frames"] > frames)
        # By the same token, but with an event that this worker did not write.
        stopping = asyncio.create_task(log.stop())
        log.kept[KEY].events.append(proto.Event(sequence=4, message_id="strange"))
        log.holds.set()
        await stopping
        await log.listen()
        assert text((await sending).reply) == "re: 1"
        assert log.counts["release"] == 1


@pytest.mark.parametrize("when_busy", ["interrupt", "reject"])
async def test_repeating_what_has_ended_disturbs_nobody(tmp_path: Path, when_busy: str) -> None:
    async with serving(Held, tmp_path, when_busy=when_busy, cancel_grace_s=0.05) as (worker, log):
        Held.go.set()
        ended = await worker.send("0", message="m0")
        Held.go.clear()
        running = asyncio.create_task(worker.send("1", message="m1"))
        await eventually(lambda: Held.begun == ["0", "1"])
        assert await worker.send("0", message="m0") == ended
        assert kinds(await worker.events("0", message="m0")) == ["message", "attempt", "completion"]
        assert "cancellation" not in log.texts(KEY)
        # One that is new does.
        if when_busy == "reject":
            with pytest.raises(errors.ConversationBusy):
                await worker.send("2", message="m2")
            Held.go.set()
            assert text((await running).reply) == "re: 1"
        else:
            third = asyncio.create_task(worker.send("2", message="m2"))
            with pytest.raises(errors.Cancelled):
                await running
            Held.go.set()
            assert text((await third).reply) == "re: 2"


async def test_no_message_runs_beside_one_that_cannot_be_written(tmp_path: Path) -> None:
    class Slow(Held):
        async def on_message(self, message: ChatMessage, ctx: Context) -> str:
            if message.text != "1":
                return await super().on_message(message, ctx)
            await ctx.reply("said")
            try:
                await asyncio.Event().wait()
            finally:
                Held.begun.append("cleans up")
                await ctx.reply("too late")
                await Held.go.wait()
                Held.begun.append("has ended")
            return ""

    async with serving(Slow, tmp_path) as (worker, log):
        Held.go.set()
        await worker.send("0")
        Held.go.clear()
        log.refusal = errors.ResourceExhausted("the conversation is full")
        log.holds.clear()
        mailbox = at_hand(worker)
        first = asyncio.create_task(worker.send("1"))
        await eventually(lambda: mailbox.current is not None)
        second = asyncio.create_task(worker.send("2"))
        await eventually(lambda: len(mailbox.waiting) == 1)
        log.holds.set()
        await eventually(lambda: "cleans up" in Held.begun)
        await eventually(lambda: mailbox.waiting and mailbox.waiting[0].is_stored)
        Held.go.set()
        with pytest.raises(errors.ResourceExhausted, match="full"):
            await first
        assert text((await second).reply) == "re: 2"
        assert Held.begun == ["0", "cleans up", "has ended", "2"]
        assert "chunk" not in log.texts(KEY)


async def test_cancelling_is_on_the_log_at_once(tmp_path: Path) -> None:
    """With its end, where its beginning was not on disk yet: it is not begun."""
    async with serving(Held, tmp_path, cancel_grace_s=20) as (worker, log):
        first = asyncio.create_task(worker.send("1", message="m1"))
        await eventually(lambda: Held.begun == ["1"])
        second = asyncio.create_task(worker.send("2", message="m2"))
        await eventually(lambda: len(log.kept[KEY].messages) == 2)
        await cancel(worker, "m1")
        await eventually(lambda: log.texts(KEY)[-1] == "cancellation")
        log.holds.clear()
        Held.go.set()
        mailbox = at_hand(worker)
        await eventually(lambda: mailbox.current is not None and mailbox.current.message_id == "m2")
        await cancel(worker, "m2")
        log.holds.set()
        for each in (first, second):
            with pytest.raises(errors.Cancelled):
                await each
        assert log.texts(KEY)[2:] == ["message", "cancellation", "failure", "attempt", "cancellation", "failure"]
        assert Held.begun == ["1"]


async def test_a_lease_anew_begins_nothing_while_the_worker_drains(tmp_path: Path) -> None:
    async with serving(Held, tmp_path) as (worker, log), working(Held, log.path, "a-02") as other:
        running = asyncio.create_task(worker.send("1", message="m"))
        await eventually(lambda: Held.begun == ["1"])
        await log.stop()
        draining = asyncio.create_task(worker.server.drain(20, asyncio.Event()))
        await eventually(lambda: at_hand(worker).is_leaving)
        # Another worker took it up, and died over it.
        log.tokens += 1
        log.kept[KEY].token = log.tokens
        await log.listen()
        await eventually(lambda: log.counts["open"] == 2 and log.kept[KEY].holder is None)
        assert Held.begun == ["1"]
        Held.go.set()
        again = await other.send("1", message="m")
        assert text(again.reply) == "re: 1"
        # Who called the worker that drains hears of it by the log.
        assert await running == again
        await asyncio.wait_for(draining, 10)


async def test_a_conversation_that_cannot_be_opened_is_said_and_nothing_else_suffers(tmp_path: Path) -> None:
    async with serving(Held, tmp_path) as (worker, log):
        running = asyncio.create_task(worker.send("0", conversation="other"))
        await eventually(lambda: Held.begun == ["0"])
        log.unopenable = errors.ResourceExhausted("what waits in it is too much for a frame")
        with pytest.raises(errors.ResourceExhausted, match="too much"):
            await worker.send("1")
        assert worker.server._conversations is not None
        assert worker.server._conversations.find(*KEY) is None
        log.unopenable = None
        # Nothing is there that would have to wait.
        log.away = True
        with pytest.raises(errors.StoreUnavailable, match="away"):
            await worker.send("1")
        log.away = False
        Held.go.set()
        assert text((await running).reply) == "re: 0"
        assert text((await worker.send("1")).reply) == "re: 1"
