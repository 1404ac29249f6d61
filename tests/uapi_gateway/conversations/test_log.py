"""Leases, group commit, watchers, cancelling and deleting."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.errors import (
    AgentError,
    ConversationNotFound,
    Internal,
    InvalidArgument,
    LeaseLost,
    MessageNotFound,
    StoreUnavailable,
)

from tests.uapi_gateway.conversations.memory import Holding, MemoryStore
from tests.waiting import eventually
from uapi_gateway.conversations import log as log_module
from uapi_gateway.conversations.leases import Hold, Holder
from uapi_gateway.conversations.log import EventLog
from uapi_gateway.conversations.sql import SqlStore
from uapi_gateway.conversations.store import Append, Appended, Key, Store

KEY = Key("local", "a", "first")


def said(message_id: str, text: str = "Hi") -> proto.Event:
    return proto.Event(message_id=message_id, message=proto.ChatMessage(parts=[proto.Part(text=text)]))


def begun(message_id: str) -> proto.Event:
    return proto.Event(message_id=message_id, attempt=proto.Attempt(number=1))


def piece(message_id: str, text: str = "x") -> proto.Event:
    return proto.Event(message_id=message_id, chunk=proto.Part(text=text))


def over(message_id: str) -> proto.Event:
    return proto.Event(message_id=message_id, completion=proto.ChatMessage())


@asynccontextmanager
async def running(
    store: MemoryStore | None = None, prepare: Callable[[EventLog], None] = lambda _: None
) -> AsyncIterator[tuple[EventLog, MemoryStore]]:
    store = store or MemoryStore()

    async def opened() -> MemoryStore:
        await store.open()
        return store

    log = EventLog(opened)
    prepare(log)
    task = asyncio.create_task(log.run())
    try:
        yield log, store
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def append(log: EventLog, hold: Hold, *events: proto.Event, token: int = 0) -> Appended:
    done: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()

    def told(result: Appended | AgentError, _now_ns: int) -> None:
        if isinstance(result, AgentError):
            done.set_exception(result)
        else:
            done.set_result(result)

    log.append(hold, Append(hold.key, token or hold.token, events), told)
    return await done


async def release(log: EventLog, hold: Hold) -> None:
    done = asyncio.Event()
    log.release(hold, done.set)
    await done.wait()


def end(log: EventLog, holder: Holding, hold: Hold) -> None:
    holder.ended = True
    log.release(hold)


async def opened(log: EventLog, holder: Holder, key: Key = KEY, token: int = 0) -> Hold:
    return (await log.open(key, holder, token))[0]


async def test_appends_that_come_during_a_transaction_share_the_next() -> None:
    async with running() as (log, store):
        holds = [await opened(log, Holding(), Key("local", "a", str(n))) for n in range(20)]
        store.flowing.clear()
        first = asyncio.create_task(append(log, holds[0], said("m")))
        await eventually(lambda: not holds[0].queue and holds[0].busy)
        others = [asyncio.create_task(append(log, hold, said("m"), begun("m"))) for hold in holds[1:]]
        await eventually(lambda: all(hold.queue for hold in holds[1:]))
        store.flowing.set()
        assert (await first).last_sequence == 1
        assert [each.last_sequence for each in await asyncio.gather(*others)] == [2] * 19
        assert store.batches == [1, 19]
        assert log.figures.appends == 20
        assert log.figures.commits == 2


async def test_of_one_conversation_each_append_has_a_transaction_of_its_own_in_order() -> None:
    async with running() as (log, store):
        hold = await opened(log, Holding())
        found = await asyncio.gather(append(log, hold, said("m")), *(append(log, hold, piece("m")) for _ in range(4)))
        assert [each.last_sequence for each in found] == [1, 2, 3, 4, 5]
        assert store.batches == [1] * 5


async def test_what_was_written_unheard_is_not_written_twice() -> None:
    async with running() as (log, store):
        hold = await opened(log, Holding())
        store.troubles = ["away", "lost", "away"]
        first = await append(log, hold, said("m"), begun("m"))
        assert (first.last_sequence, first.known) == (2, None)
        assert (await append(log, hold, piece("m"))).last_sequence == 3
        assert [event.sequence for event in store.kept[KEY].events] == [1, 2, 3]
        assert log.figures.failures == 2 + 1


async def test_what_breaks_the_store_takes_nobody_with_it() -> None:
    async with running() as (log, store):
        holders = [Holding(), Holding()]
        holds = [await opened(log, holder, Key("local", "a", str(n))) for n, holder in enumerate(holders)]
        store.troubles = ["broken", "broken"]
        found = await asyncio.gather(*(append(log, hold, said("m")) for hold in holds), return_exceptions=True)
        # The batch, and then the first of it alone.
        assert [type(each) for each in found] == [Internal, Appended]
        assert holders[0].told == [("lost", "0")]


async def test_a_second_opener_waits_until_the_holder_gives_back() -> None:
    async with running() as (log, _):
        first, second = Holding("a-01"), Holding("a-02")
        hold = await opened(log, first)
        waiting = asyncio.create_task(opened(log, second))
        await eventually(lambda: first.told == [("wanted", "first")])
        # What is still to be written is, first of all.
        last = asyncio.create_task(append(log, hold, said("m"), over("m")))
        await asyncio.sleep(0)
        log.release(hold)
        theirs = await waiting
        assert theirs.token > hold.token
        assert theirs.last_sequence == 2
        assert (await last).last_sequence == 2
        with pytest.raises(LeaseLost):
            await append(log, hold, piece("m"))
        with pytest.raises(LeaseLost):
            await append(log, theirs, piece("m"), token=hold.token)


async def test_those_who_wait_get_it_in_their_order_and_leave_when_cancelled() -> None:
    async with running() as (log, _):
        hold = await opened(log, Holding())
        holders = [Holding(str(n)) for n in range(3)]
        waiting = [asyncio.create_task(opened(log, holder)) for holder in holders]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        log.release(hold)
        second = await waiting[1]
        assert not waiting[2].done()
        # Told at once that another waits.
        await eventually(lambda: holders[1].told == [("wanted", "first")])
        log.release(second)
        log.release(await waiting[2])
        await eventually(lambda: not log.figures.open)


async def test_the_store_decides_who_may_write() -> None:
    async with running() as (log, store):
        holder = Holding()
        hold = await opened(log, holder)
        await store.acquire(KEY, "another gateway's", 0)
        with pytest.raises(LeaseLost):
            await append(log, hold, said("m"))
        assert holder.told == [("lost", "first")]
        assert not log.held(KEY)


async def test_what_runs_is_counted() -> None:
    async with running() as (log, _):
        holder = Holding("a-01")
        hold = await opened(log, holder)
        for event, runs in ((said("m"), 0), (begun("m"), 1), (over("m"), 0), (said("n"), 0), (begun("n"), 1)):
            await append(log, hold, event)
            assert log.running()["a"] == runs
        end(log, holder, hold)
        assert not log.running()


async def test_a_lost_connection_frees_its_leases_and_is_remembered() -> None:
    async with running() as (log, _):
        left: list[Key] = []
        log.left.append(left.append)
        holder = Holding("a-01")
        hold = await opened(log, holder)
        await append(log, hold, said("m"), begun("m"))
        end(log, holder, hold)
        assert left == [KEY]
        assert not log.held(KEY)
        another = Holding("a-02")
        hold, lease = await log.open(KEY, another)
        assert [(info.message_id, info.status) for info, _ in lease.messages] == [("m", proto.MESSAGE_STATUS_RUNNING)]
        assert [each.worker_id for each in log.lost(KEY, "m")] == ["a-01"]
        await append(log, hold, over("m"))
        await release(log, hold)
        assert log.lost(KEY, "m") == ()
        assert left == [KEY]


async def test_ends_are_a_messages_own() -> None:
    async with running() as (log, _):
        for number in (1, 2):
            holder = Holding(f"a-{number}")
            hold = await opened(log, holder)
            await append(log, hold, *([said("m")] if number == 1 else []), begun("m"))
            end(log, holder, hold)
        # Given back by one that had begun it, and drains: what is known of the others stays.
        holder = Holding("a-3")
        hold = await opened(log, holder)
        await append(log, hold, begun("m"), proto.Event(message_id="m", interruption=proto.Interruption()))
        await release(log, hold)
        assert [each.worker_id for each in log.lost(KEY, "m")] == ["a-1", "a-2"]
        holder = Holding("a-4")
        hold = await opened(log, holder)
        await append(log, hold, over("m"), said("n"), begun("n"))
        end(log, holder, hold)
        assert [each.worker_id for each in log.lost(KEY, "n")] == ["a-4"]
        assert log.lost(KEY, "m") == ()


async def test_who_had_it_before_the_gateway_started_gets_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    async with running(store) as (log, _):
        hold = await opened(log, Holding())
        await append(log, hold, said("m"), begun("m"))
    assert store.closed
    async with running(store) as (log, _):
        # Another that comes first waits.
        other = asyncio.create_task(opened(log, Holding("a-02")))
        await asyncio.sleep(0.05)
        again = await opened(log, Holding("a-01"), token=hold.token)
        assert again.token == hold.token
        assert (await append(log, again, over("m"))).last_sequence == 3
        assert not other.done()
        log.release(again)
        assert (await other).token > hold.token
        with pytest.raises(LeaseLost):
            await opened(log, Holding("a-01"), token=hold.token)


async def test_one_that_nobody_comes_back_to_is_anybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "RETURN_S", 0.05)
    store = MemoryStore()
    async with running(store) as (log, _):
        await append(log, await opened(log, Holding()), said("m"))
    async with running(store) as (log, _):
        assert await asyncio.wait_for(opened(log, Holding("a-02")), 10)


async def test_watchers_hear_all_without_gap_or_repeat_while_it_is_written() -> None:
    async with running() as (log, store):
        hold = await opened(log, Holding())
        await append(log, hold, said("m"), begun("m"))
        count = 800

        async def write() -> None:
            for n in range(count):
                await append(log, hold, piece("m", str(n)))
            await append(log, hold, over("m"))

        async def watch(after: int, message_id: str, slow: bool) -> list[int]:
            seen = []
            async with aclosing(log.watch(KEY, after, message_id=message_id, follow=True)) as events:
                async for event in events:
                    seen.append(event.sequence)
                    assert event.token == hold.token
                    assert event.time.seconds
                    if slow and event.sequence % 300 == 0:
                        await asyncio.sleep(0.05)
                    if event.HasField("completion"):
                        break
            return seen

        writing = asyncio.create_task(write())
        watching = []
        for n in range(12):
            watching.append(asyncio.create_task(watch(n % 3, "m" if n % 2 else "", slow=n % 4 == 0)))
            await asyncio.sleep(0.005)
        for n, task in enumerate(watching):
            assert await task == list(range(n % 3 + 1, count + 4))
        await writing
        assert not log.figures.watchers
        assert {event.chunk.text for event in store.kept[KEY].events if event.HasField("chunk")} == {
            str(n) for n in range(count)
        }


async def test_a_watcher_that_falls_behind_reads_from_the_store() -> None:
    async with running() as (log, store):
        hold = await opened(log, Holding())
        await append(log, hold, said("m"))
        async with aclosing(log.watch(KEY, follow=True)) as events:
            assert (await anext(events)).sequence == 1
            # It waits for what is next, and is then not asked for a while.
            reads = store.reads
            for _ in range(500):
                await append(log, hold, piece("m"))
            seen = [(await anext(events)).sequence for _ in range(500)]
            assert seen == list(range(2, 502))
            assert store.reads > reads


async def test_watching_one_message_ends_with_it() -> None:
    async with running() as (log, _):
        hold = await opened(log, Holding())
        await append(log, hold, said("m"), said("n"), begun("m"), over("m"), begun("n"))
        assert [e.sequence async for e in log.watch(KEY, message_id="m", follow=True)] == [1, 3, 4]
        # From behind its end, too.
        assert [e.sequence async for e in log.watch(KEY, 4, message_id="m", follow=True)] == []
        assert [e.sequence async for e in log.watch(KEY, 1)] == [2, 3, 4, 5]
        # Nothing ever comes of one that is not there.
        assert [e async for e in log.watch(KEY, message_id="none")] == []
        with pytest.raises(MessageNotFound):
            await asyncio.wait_for(anext(log.watch(KEY, message_id="none", follow=True)), 10)
        with pytest.raises(ConversationNotFound):
            await anext(log.watch(Key("local", "a", "none")))


async def test_a_page_has_no_negative_size() -> None:
    async with running() as (log, _):
        with pytest.raises(InvalidArgument, match="page_size is -1"):
            await log.list("local", "a", -1)


async def test_cancelling_is_told_to_whoever_has_it() -> None:
    async with running() as (log, store):
        holder = Holding()
        hold = await opened(log, holder)
        await append(log, hold, said("m"), begun("m"), said("n"))
        assert await log.cancel(KEY) == proto.MESSAGE_STATUS_RUNNING
        assert await log.cancel(KEY, "n") == proto.MESSAGE_STATUS_PENDING
        assert holder.told == [("cancelled", "m"), ("cancelled", "n")]
        with pytest.raises(MessageNotFound):
            await log.cancel(KEY, "none")
        with pytest.raises(ConversationNotFound):
            await log.cancel(Key("local", "a", "none"))
        # It ends before it has done so: it was asked for all the same.
        await append(log, hold, over("m"))
        assert await log.cancel(KEY, "m") == proto.MESSAGE_STATUS_COMPLETED
        end(log, holder, hold)
        await eventually(lambda: store.kept[KEY].messages["n"].status == proto.MESSAGE_STATUS_CANCELLED)
        assert [event.WhichOneof("content") for event in store.kept[KEY].events[-2:]] == ["cancellation", "failure"]
        await eventually(lambda: not log.figures.open)


async def test_what_nobody_has_is_cancelled_by_the_log() -> None:
    async with running() as (log, store):
        holder = Holding()
        hold = await opened(log, holder)
        await append(log, hold, said("m"), begun("m"), said("n"))
        end(log, holder, hold)
        left: list[Key] = []
        log.left.append(left.append)
        assert await log.cancel(KEY, "m") == proto.MESSAGE_STATUS_CANCELLED
        assert store.kept[KEY].messages["m"].status == proto.MESSAGE_STATUS_CANCELLED
        assert store.kept[KEY].messages["n"].status == proto.MESSAGE_STATUS_PENDING
        # The other is still to be handled.
        assert left == [KEY]


async def test_deleting_takes_it_away_first() -> None:
    async with running() as (log, store):
        holder, another = Holding(), Holding("a-02")
        hold = await opened(log, holder)
        await append(log, hold, said("m"), begun("m"))
        watching = asyncio.ensure_future(anext(log.watch(KEY, 2, follow=True)))
        waiting = asyncio.create_task(opened(log, another))
        await eventually(lambda: log.figures.watchers)
        store.flowing.clear()
        late = [asyncio.create_task(append(log, hold, piece("m"))) for _ in range(3)]
        await eventually(lambda: len(hold.queue) == 2)
        await log.delete(KEY)
        assert ("lost", "first") in holder.told
        store.flowing.set()
        found: list[object] = await asyncio.gather(*late, watching, return_exceptions=True)
        assert [type(each) for each in found] == [LeaseLost] * 3 + [ConversationNotFound]
        # Whoever waited begins another.
        fresh = await waiting
        assert (fresh.last_sequence, fresh.unended) == (0, {})
        with pytest.raises(ConversationNotFound):
            await log.delete(Key("local", "a", "none"))


async def test_what_could_not_be_deleted_is_gone_on_with() -> None:
    async with running() as (log, store):
        left: list[Key] = []
        log.left.append(left.append)
        hold = await opened(log, Holding())
        await append(log, hold, said("m"), begun("m"))
        store.troubles = ["away"]
        with pytest.raises(StoreUnavailable):
            await log.delete(KEY)
        assert left == [KEY]
        assert not log.figures.open
        assert store.kept[KEY].messages


async def test_what_has_expired_is_taken_away() -> None:
    async with running() as (log, store):
        holder = Holding()
        hold = await opened(log, holder)
        await append(log, hold, said("m"), over("m"))
        changed_ns = store.kept[KEY].events[-1].time.ToNanoseconds()
        assert await log.expire("a", changed_ns) == 0
        assert await log.expire("b", changed_ns + 1) == 0
        assert await log.expire("a", changed_ns + 1) == 1
        assert holder.told == [("lost", "first")]
        assert not log.figures.open


def asked(message_id: str) -> proto.Event:
    return proto.Event(message_id=message_id, cancellation=proto.Cancellation())


async def hang_up(task: "asyncio.Task[object]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_who_hangs_up_while_a_message_is_ended_ends_nothing_else() -> None:
    async with running() as (log, store):
        holder = Holding()
        hold = await opened(log, holder)
        await append(log, hold, said("m"), begun("m"))
        end(log, holder, hold)
        store.flowing.clear()
        cancelling: asyncio.Task[object] = asyncio.create_task(log.cancel(KEY, "m"))
        await eventually(lambda: log.held(KEY))
        await asyncio.sleep(0.01)
        await hang_up(cancelling)
        store.flowing.set()
        await eventually(lambda: store.kept[KEY].messages["m"].status == proto.MESSAGE_STATUS_CANCELLED)
        await append(log, await opened(log, Holding()), said("n"))


async def test_who_cannot_be_told_does_not_end_the_writer() -> None:
    def broken(*_: object) -> None:
        raise ValueError("broken")

    async with running() as (log, _):
        hold = await opened(log, Holding())
        log.append(hold, Append(KEY, hold.token, (said("m"),)), broken)
        log.release(hold, broken)
        assert (await append(log, await opened(log, Holding()), said("n"))).last_sequence == 2


async def test_what_is_deleted_while_it_is_written_keeps_nobody_awake() -> None:
    async with running() as (log, store):
        hold = await opened(log, Holding())
        await append(log, hold, said("m"), begun("m"))
        store.flowing.clear()
        late = asyncio.create_task(append(log, hold, piece("m")))
        await eventually(lambda: hold.busy and not hold.queue)
        store.giving.clear()
        deleting = asyncio.create_task(log.delete(KEY))
        await eventually(lambda: hold.over)
        store.flowing.set()
        await late
        store.giving.set()
        await deleting
        assert not log.running()


async def test_what_was_cancelled_is_not_begun_again_when_its_worker_ends() -> None:
    async with running() as (log, store):
        holder = Holding()
        hold = await opened(log, holder)
        # A caller of the worker itself asked for it.
        await append(log, hold, said("m"), begun("m"), asked("m"))
        end(log, holder, hold)
        await eventually(lambda: store.kept[KEY].messages["m"].status == proto.MESSAGE_STATUS_CANCELLED)


@pytest.mark.parametrize("returns", [False, True])
async def test_what_was_cancelled_before_the_gateway_started_is_not_begun_again(returns: bool) -> None:
    store = MemoryStore()
    async with running(store) as (log, _):
        before = await opened(log, Holding())
        await append(log, before, said("m"), begun("m"), asked("m"), said("n"))
    async with running(store) as (log, _):
        holder = Holding()
        if returns:
            # It knows of it, and is about to end it.
            hold = await opened(log, holder, token=before.token)
            assert list(hold.unended) == ["m", "n"]
            end(log, holder, hold)
        hold = await opened(log, Holding("a-02"))
        assert hold.unended == {"n": False}
        assert store.kept[KEY].messages["m"].status == proto.MESSAGE_STATUS_CANCELLED


async def test_deleting_goes_on_when_its_caller_hangs_up() -> None:
    async with running() as (log, store):
        hold = await opened(log, Holding())
        await append(log, hold, said("m"), begun("m"))
        store.giving.clear()
        deleting: asyncio.Task[object] = asyncio.create_task(log.delete(KEY))
        await eventually(lambda: hold.over)
        await hang_up(deleting)
        store.giving.set()
        await eventually(lambda: KEY not in store.kept)
        await eventually(lambda: not log.figures.open)


async def test_deleting_does_not_wait_for_what_somebody_is_about_to_begin() -> None:
    async with running() as (log, store):
        store.giving.clear()
        opening = asyncio.create_task(opened(log, Holding()))
        await eventually(lambda: log.figures.open)
        deleting = asyncio.create_task(log.delete(KEY))
        await asyncio.sleep(0.01)
        store.giving.set()
        assert (await opening).token
        await asyncio.wait_for(deleting, 10)
        assert KEY not in store.kept


async def test_cancelling_makes_no_conversation_anew() -> None:
    async with running() as (log, store):
        holder = Holding()
        hold = await opened(log, holder)
        await append(log, hold, said("m"), begun("m"))
        end(log, holder, hold)
        store.giving.clear()
        cancelling = asyncio.create_task(log.cancel(KEY, "m"))
        await eventually(lambda: log.figures.open)
        del store.kept[KEY]
        store.giving.set()
        with pytest.raises(ConversationNotFound):
            await cancelling
        assert not store.kept
        assert not log.figures.open


async def test_what_was_perhaps_written_is_not_written_twice_when_the_store_then_breaks() -> None:
    async with running() as (log, store):
        holds = [await opened(log, Holding(), Key("local", "a", str(n))) for n in range(2)]
        store.troubles = ["lost", "broken"]
        found = await asyncio.gather(*(append(log, hold, said("m"), begun("m")) for hold in holds))
        assert [(each.last_sequence, each.known) for each in found] == [(2, None)] * 2


async def test_cancelling_what_was_just_written_is_told() -> None:
    async with running() as (log, _):
        holder = Holding()
        hold = await opened(log, holder)
        await append(log, hold, said("m"))
        # On disk, and the writer has not told the hold so yet.
        hold.unended.clear()
        assert await log.cancel(KEY, "m") == proto.MESSAGE_STATUS_PENDING
        assert holder.told == [("cancelled", "m")]


async def test_a_store_that_cannot_be_reached_is_said_and_found_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "_PATIENCE_S", 0.1)
    away, store = SqlStore("postgresql://nobody@127.0.0.1:1/x", tmp_path), MemoryStore()
    stores: list[Store] = [away]

    async def opened() -> Store:
        await stores[0].open()
        return stores[0]

    log = EventLog(opened)
    task = asyncio.create_task(log.run())
    await log.heard(10)
    assert "127.0.0.1" in log.trouble
    for asked in (log.open(KEY, Holding()), log.find(KEY)):
        with pytest.raises(StoreUnavailable, match=r"127.0.0.1.*; try again"):
            await asked
    stores[0] = store
    await eventually(lambda: not log.trouble)
    assert (await log.open(KEY, Holding()))[0].token
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await away.close()


async def test_a_store_that_goes_away_is_trouble_until_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "_PATIENCE_S", 0.01)
    async with running() as (log, store):
        hold = await opened(log, Holding())
        store.troubles = ["away"] * 3
        writing = asyncio.create_task(append(log, hold, said("m")))
        await eventually(lambda: log.trouble == "away")
        await writing
        assert not log.trouble
        # Where nothing is to be written, it is looked for.
        store.troubles = ["away"] * 3
        with pytest.raises(StoreUnavailable):
            await opened(log, Holding(), Key("local", "a", "second"))
        assert "away" in log.trouble
        await eventually(lambda: not log.trouble)
