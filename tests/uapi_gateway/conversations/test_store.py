"""What every store of conversations does: on SQLite, and on a real PostgreSQL."""

import asyncio
import base64
import contextlib
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import asyncpg
import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from sqlalchemy import event

from tests.postgresql import Server
from tests.waiting import eventually, until
from uapi_gateway.conversations import retention, sql, tables
from uapi_gateway.conversations.databases import Sqlite
from uapi_gateway.conversations.sql import SqlStore
from uapi_gateway.conversations.store import Append, Appended, Courses, Key, Lease

from .saying import KEY, append, begun, completed, failed, piece, said, state, texts, written

SECRET = "the-owl-flies-at-midnight"
Make = Callable[[], SqlStore]


@pytest.fixture(scope="module")
def postgresql_url(postgresql_server: Server) -> str:
    """Of a database that the tests use one after the other."""
    return postgresql_server.database()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database without conversations."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state/conversations.db"
    made: str = request.getfixturevalue("postgresql_url")
    connection = await asyncpg.connect(made)
    for table in reversed(tables.metadata.sorted_tables):
        with contextlib.suppress(asyncpg.UndefinedTableError):  # the first test makes them
            await connection.execute(f"TRUNCATE {table.name}")
    await connection.close()
    return made


@pytest.fixture
async def make(url: str, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes stores over the same database, as a gateway does that starts again."""
    async with contextlib.AsyncExitStack() as stack:

        def made() -> SqlStore:
            store = SqlStore(url, tmp_path / "blobs", max_bytes=20_000_000)
            stack.push_async_callback(store.close)
            return store

        yield made


@pytest.fixture
async def store(make: Make) -> SqlStore:
    made = make()
    await made.open()
    return made


async def turn(
    store: SqlStore, lease: Lease, message_id: str, text: str = "Ho", *, key: Key = KEY, at: int = 1
) -> None:
    """A message from its beginning to its end: three events."""
    [answer] = await store.append(
        [append(lease, said(message_id), begun(message_id), completed(message_id, text), key=key)], at
    )
    written(answer)


async def test_what_was_written_is_read(store: SqlStore) -> None:
    lease = await store.acquire(KEY, "connection 1", 1)
    assert (lease.last_sequence, lease.state, lease.state_version, lease.messages) == (0, b"", 0, ())
    batch = [append(lease, said("a"), begun("a")), append(lease, piece("a"), state(), completed("a"))]
    assert [written(answer) for answer in await store.append(batch, 1_700_000_000_123_456_789)] == [2, 5]
    events, more = await store.events(KEY, 0, 100)
    assert texts(events) == ["1 message a", "2 attempt a", "3 chunk a", "4 state", "5 completion a"]
    assert not more
    assert {event.token for event in events} == {lease.token}
    assert {event.time.ToNanoseconds() for event in events} == {1_700_000_000_123_456_789}
    assert events[2].chunk == proto.Part(text="Ho")
    found = await store.find(KEY, "a")
    assert (found.first_sequence, found.last_sequence, found.state_version) == (1, 5, 1)
    assert found.bytes == sum(len(event.SerializeToString()) for event in events)
    assert (found.created_at.ToNanoseconds(), found.changed_at.ToNanoseconds()) == (1, 1_700_000_000_123_456_789)
    assert [info.status for info in found.messages] == [proto.MESSAGE_STATUS_COMPLETED]
    assert not (await store.find(KEY)).messages


async def test_conversations_of_others_are_others(store: SqlStore) -> None:
    keys = [Key(*names) for names in itertools.product(("alice", "bob"), ("helper", "other"), ("first", "second"))]
    leases = [await store.acquire(key, "", 1) for key in keys]
    batch = [append(lease, said(f"m{n}"), key=key) for n, (key, lease) in enumerate(zip(keys, leases, strict=True))]
    assert [written(answer) for answer in await store.append(batch, 1)] == [1] * len(keys)
    for n, key in enumerate(keys):
        assert texts((await store.events(key, 0, 10))[0]) == [f"1 message m{n}"]
    with pytest.raises(errors.ConversationNotFound):
        await store.find(Key("carol", "helper", "first"))


async def test_only_the_latest_lease_writes(store: SqlStore) -> None:
    old = await store.acquire(KEY, "old", 1)
    [first] = await store.append([append(old, said("a"), begun("a"))], 1)
    new = await store.acquire(KEY, "new", 1)
    assert new.token > old.token
    late, current = await store.append([append(old, piece("a")), append(new, begun("a", 2))], 1)
    assert isinstance(late, errors.LeaseLost)
    # Refused like the one before it: the batch is one connection's, or has one append of a conversation.
    assert isinstance(current, errors.LeaseLost)
    [current] = await store.append([append(new, begun("a", 2))], 1)
    assert (written(first), written(current)) == (2, 3)
    assert [event.token for event in (await store.events(KEY, 0, 9))[0]] == [old.token, old.token, new.token]
    assert [info.attempts for info in (await store.find(KEY)).messages] == [2]


async def test_a_lease_goes_on_if_nobody_had_it_since(store: SqlStore) -> None:
    lease = await store.acquire(KEY, "one", 1)
    assert (await store.acquire(KEY, "one again", 1, token=lease.token)).token == lease.token
    other = await store.acquire(KEY, "other", 1)
    assert (await store.acquire(KEY, "one again", 1, token=lease.token)).token > other.token
    with pytest.raises(errors.ConversationNotFound):
        await store.acquire(Key("bob", "helper", "first"), "", 1, token=lease.token)


async def test_two_holders_in_a_race_write_one_log(store: SqlStore, make: Make) -> None:
    beside = make()

    async def write(writer: SqlStore, name: str) -> list[str]:
        mine = []
        lease = await writer.acquire(KEY, name, 1)
        for number in range(15):
            [answer] = await writer.append([append(lease, said(f"{name}{number}"))], 1)
            if isinstance(answer, Appended):
                mine.append(f"{answer.last_sequence} message {name}{number}")
            else:
                assert isinstance(answer, errors.LeaseLost)
                lease = await writer.acquire(KEY, name, 1)
        return mine

    wrote = await asyncio.gather(write(store, "a"), write(beside, "b"))
    events, _ = await store.events(KEY, 0, 100)
    assert sorted(texts(events)) == sorted(wrote[0] + wrote[1])
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [event.token for event in events] == sorted(event.token for event in events)


async def test_a_message_is_there_once(store: SqlStore) -> None:
    lease = await store.acquire(KEY, "", 1)
    await turn(store, lease, "a")
    again, new = await store.append([append(lease, said("a"), begun("a")), append(lease, said("b"))], 2)
    assert isinstance(again, Appended)
    assert again.known is not None
    assert again.known.status == proto.MESSAGE_STATUS_COMPLETED
    assert written(new) == 4


async def test_an_append_is_tried_again(store: SqlStore) -> None:
    lease = await store.acquire(KEY, "", 1)
    batch = [append(lease, said("a"), begun("a"), after=0)]
    for _ in range(3):
        [answer] = await store.append(batch, 1)
        assert written(answer) == 2
    assert len((await store.events(KEY, 0, 9))[0]) == 2


async def test_the_state_is_compared_and_set(store: SqlStore) -> None:
    lease = await store.acquire(KEY, "", 1)
    sets = [
        Append(KEY, lease.token, (state(),), value, expected) for value, expected in ((b"1", 0), (b"2", 0), (b"3", 1))
    ]
    answers = [(await store.append([one], 1))[0] for one in sets]
    assert [type(answer) for answer in answers] == [Appended, errors.StateConflict, Appended]
    again = await store.acquire(KEY, "", 1)
    assert (again.state, again.state_version) == (b"3", 2)


async def test_messages_that_have_not_ended_come_with_the_lease(store: SqlStore, make: Make) -> None:
    lease = await store.acquire(KEY, "", 1)
    await turn(store, lease, "a")
    large = "x" * 100_000
    await store.append([append(lease, said("b", large), begun("b")), append(lease, said("c"))], 1)
    after = make()
    again = await after.acquire(KEY, "", 1)
    assert [(info.message_id, info.status, info.attempts) for info, _ in again.messages] == [
        ("b", proto.MESSAGE_STATUS_RUNNING, 1),
        ("c", proto.MESSAGE_STATUS_PENDING, 0),
    ]
    assert [message.parts[0].text for _, message in again.messages] == [large, "Hi"]
    assert await after.unfinished("helper") == [KEY]
    assert await after.unfinished("") == [KEY]
    assert await after.unfinished("other") == []


async def test_an_attempt_that_was_interrupted_does_not_count(store: SqlStore) -> None:
    lease = await store.acquire(KEY, "w", 1)
    interruption = proto.Event(message_id="a", interruption=proto.Interruption())
    for events in ((said("a"), begun("a")), (interruption,)):
        (answer,) = await store.append([append(lease, *events)], 1)
        assert written(answer)
    (info,) = (await store.find(KEY)).messages
    assert (info.status, info.attempts) == (proto.MESSAGE_STATUS_PENDING, 0)


async def test_events_come_in_pages(store: SqlStore) -> None:
    lease = await store.acquire(KEY, "", 1)
    for number in range(5):
        await turn(store, lease, f"m{number}")
    pages = []
    after, more = 0, True
    while more:
        events, more = await store.events(KEY, after, 4)
        after = events[-1].sequence
        pages.append([event.sequence for event in events])
    assert pages == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15]]
    assert await store.events(KEY, 15, 4) == ([], False)
    back, more = await store.events(KEY, 0, 4, backwards=True)
    assert ([event.sequence for event in back], more) == ([15, 14, 13, 12], True)
    back, more = await store.events(KEY, 3, 4, backwards=True)
    assert ([event.sequence for event in back], more) == ([2, 1], False)


async def test_a_page_is_bounded_in_bytes(store: SqlStore) -> None:
    lease = await store.acquire(KEY, "", 1)
    await store.append([append(lease, said("a"), *(piece("a", "x" * 1_500_000) for _ in range(4)))], 1)
    events, more = await store.events(KEY, 0, 0)
    assert ([event.sequence for event in events], more) == ([1, 2, 3], True)
    events, more = await store.events(KEY, 3, 0)
    assert ([event.sequence for event in events], more) == ([4, 5], False)


async def test_one_message_s_events_among_others(store: SqlStore) -> None:
    lease = await store.acquire(KEY, "", 1)
    await store.append(
        [append(lease, said("a"), begun("a")), append(lease, said("b")), append(lease, completed("a"))], 1
    )
    await store.append([append(lease, begun("b")), append(lease, failed("b")), append(lease, said("c"))], 1)
    assert texts((await store.events(KEY, 0, 9, message_id="b"))[0]) == ["3 message b", "5 attempt b", "6 failure b"]
    assert texts((await store.events(KEY, 3, 9, message_id="b"))[0]) == ["5 attempt b", "6 failure b"]
    assert texts((await store.events(KEY, 0, 2, message_id="b"))[0]) == ["3 message b", "5 attempt b"]
    assert await store.events(KEY, 0, 9, message_id="z") == ([], False)


async def test_messages_with_their_ends_and_nothing_between(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.ConversationNotFound):
        await store.messages(KEY, 0, 9)
    lease = await store.acquire(KEY, "", 1)
    assert await store.messages(KEY, 0, 9) == Courses((), 0)
    await turn(store, lease, "a", "x" * 100_000)
    # One waits while the other runs, and is cancelled; the last one is to be.
    asked = proto.Event(message_id="d", cancellation=proto.Cancellation())
    both = (said("b"), begun("b"), said("c"), piece("b"), failed("c", 1), failed("b"))
    await store.append([append(lease, *both, said("d"), begun("d"), piece("d"), asked)], 1)

    async def told(
        before: int, limit: int, statuses: "Sequence[proto.MessageStatus.ValueType]" = ()
    ) -> tuple[list[str], int]:
        found = await store.messages(KEY, before, limit, statuses=statuses)
        shown = [texts([course.first, *([course.last] if course.last else [])]) for course in found.courses]
        assert [course.info.message_id for course in found.courses] == [
            course.first.message_id for course in found.courses
        ]
        return [" ".join(each) for each in shown], found.count

    every = ["10 message d", "6 message c 8 failure c", "4 message b 9 failure b", "1 message a 3 completion a"]
    assert await told(0, 9) == (every, 4)
    assert await told(0, 3) == (every[:3], 4)
    assert await told(6, 9) == (every[2:], 2)
    assert await told(0, 9, statuses=[proto.MESSAGE_STATUS_RUNNING]) == (every[:1], 1)
    ended = [proto.MESSAGE_STATUS_CANCELLED, proto.MESSAGE_STATUS_COMPLETED]
    assert await told(0, 1, statuses=ended) == (every[1:2], 2)
    [course] = (await store.messages(KEY, 2, 9)).courses
    assert course.last is not None
    assert len(course.last.completion.parts[0].text) == 100_000
    monkeypatch.setattr(sql, "PAGE_BYTES", 1000)
    assert await told(0, 9) == (every[:3], 4)
    assert await told(4, 9) == (every[3:], 1)


async def test_large_events(store: SqlStore) -> None:
    lease = await store.acquire(KEY, "", 1)
    sizes = [60_000, 70_000, 4_000_000]
    await store.append([append(lease, said("a"), *(piece("a", "x" * size) for size in sizes))], 1)
    events, _ = await store.events(KEY, 0, 9)
    assert [len(event.chunk.text) for event in events[1:]] == sizes
    [answer] = await store.append([append(lease, piece("a", "x" * 4_300_000))], 1)
    assert isinstance(answer, errors.MessageTooLarge)


async def test_a_conversation_is_full_at_some_time(store: SqlStore) -> None:
    lease = await store.acquire(KEY, "", 1)
    written((await store.append([append(lease, said("a"))], 1))[0])
    for _ in range(4):
        written((await store.append([append(lease, piece("a", "x" * 4_000_000))], 1))[0])
    full, ended = [
        (await store.append([append(lease, one)], 1))[0] for one in (piece("a", "x" * 4_100_000), failed("a"))
    ]
    assert isinstance(full, errors.ConversationFull)
    assert written(ended) == 6


async def test_conversations_are_listed_those_that_changed_last_first(store: SqlStore) -> None:
    keys = [Key(principal, agent, f"c{n}") for n in range(3) for principal in "ab" for agent in "xy"]
    for at, key in enumerate(keys, 1):
        await turn(store, await store.acquire(key, "", at), "m", key=key, at=at // 2)  # some at the same time

    async def listed(principal: str | None, agent: str, size: int) -> list[Key]:
        found, token = [], ""
        while True:
            page = await store.list(principal=principal, agent=agent, page_size=size, page_token=token)
            assert len(page.conversations) <= (size or 1000)
            found += [Key(one.principal, one.agent, one.conversation_id) for one in page.conversations]
            token = page.next_token
            if not token:
                return found

    for principal, agent, size in itertools.product((None, "a", "b", "z"), ("", "x", "z"), (0, 1, 4)):
        wanted = [key for key in reversed(keys) if principal in (None, key.principal) and agent in ("", key.agent)]
        assert await listed(principal, agent, size) == wanted
    for token in ("nonsense", "bm9wZQ==", "ü"):
        with pytest.raises(errors.InvalidArgument):
            await store.list(principal=None, agent="", page_size=1, page_token=token)


async def test_trimming_takes_the_oldest_messages(store: SqlStore, tmp_path: Path) -> None:
    lease = await store.acquire(KEY, "", 1)
    for number in range(4):
        await turn(store, lease, f"m{number}", "x" * 100_000)
    assert await store.trim("helper", max_events=12, max_bytes=0) == 0
    assert await store.trim("other", max_events=1, max_bytes=0) == 0
    assert await store.trim("helper", max_events=8, max_bytes=0) == 6
    assert await store.trim("helper", max_events=8, max_bytes=200_000) == 3
    found = await store.find(KEY, "m2")
    assert (found.first_sequence, found.last_sequence, len(found.messages)) == (10, 12, 0)
    events, _ = await store.events(KEY, 9, 9)
    assert found.bytes == sum(len(event.SerializeToString()) for event in events)
    with pytest.raises(errors.EventsExpired) as raised:
        await store.events(KEY, 8, 9)
    assert raised.value.metadata == {"first_sequence": "10"}
    assert len(await store.events(KEY, 0, 9, backwards=True)) == 2
    # The newest stays, whatever the bounds are.
    assert await store.trim("helper", max_events=1, max_bytes=1) == 0
    await turn(store, lease, "m4")
    assert len([path for path in tmp_path.glob("blobs/*/*") if path.is_file()]) <= 1


@pytest.mark.parametrize(
    ("max_events", "turns", "cut"),
    [(11, 0, 3), (9, 0, 3), (8, 0, 6), (0, 0.1, 9), (0, 3.5, 3), (0, 2.5, 6), (7, 3.5, 6)],
)
async def test_as_little_is_trimmed_as_does_it(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, max_events: int, turns: float, cut: int
) -> None:
    monkeypatch.setattr(retention, "_SIZES_AT_A_TIME", 2)
    lease = await store.acquire(KEY, "", 1)
    for number in range(4):
        await turn(store, lease, f"m{number}", "x" * 200)
    max_bytes = int((await store.find(KEY)).bytes / 4 * turns)
    assert await store.trim("helper", max_events=max_events, max_bytes=max_bytes) == cut
    assert (await store.find(KEY)).first_sequence == cut + 1


async def test_expiring_leaves_what_runs(store: SqlStore) -> None:
    keys = [Key("alice", "helper", f"c{n}") for n in range(4)]
    for at, key in enumerate(keys, 1):
        lease = await store.acquire(key, "", at)
        await turn(store, lease, "m", key=key, at=at)
        if at == 1:
            await store.append([append(lease, said("runs"), key=key)], at)
    assert await store.expire("other", before_ns=4) == []
    assert await store.expire("helper", before_ns=4) == keys[1:3]
    assert await store.expire("helper", before_ns=4) == []
    page = await store.list(principal=None, agent="", page_size=0, page_token="")
    assert {one.conversation_id for one in page.conversations} == {"c0", "c3"}


async def test_a_deleted_conversation_is_gone_and_may_begin_anew(store: SqlStore) -> None:
    lease = await store.acquire(KEY, "", 1)
    await turn(store, lease, "a")
    await store.append([Append(KEY, lease.token, (state(),), b"1")], 1)
    await store.delete(KEY)
    for gone in (store.find(KEY), store.events(KEY, 0, 1), store.delete(KEY)):
        with pytest.raises(errors.ConversationNotFound):
            await gone
    [late] = await store.append([append(lease, said("b"))], 1)
    assert isinstance(late, errors.LeaseLost)
    new = await store.acquire(KEY, "", 1)
    assert new.token > lease.token
    assert (new.last_sequence, new.state_version) == (0, 0)
    [late] = await store.append([append(lease, said("b"))], 1)
    assert isinstance(late, errors.LeaseLost)


@pytest.mark.parametrize("how", ["delete", "expire", "trim"])
async def test_what_was_deleted_is_not_on_the_disk(tmp_path: Path, how: str) -> None:
    """SQLite: nothing of it is in the database, its WAL, or the blobs."""
    store = SqlStore(f"sqlite:///{tmp_path}/conversations.db", tmp_path / "blobs")
    await store.open()
    other = Key("bob", "helper", "first")
    for key, text in ((KEY, SECRET), (other, "something else")):
        lease = await store.acquire(key, "", 1)
        # In a leaf of its own, in overflow pages, in a file; as a state, too.
        for number, size in enumerate((1, 20, 300, 3000)):
            await turn(store, lease, f"{number}", text * size, key=key)
        await store.append([Append(key, lease.token, (state(),), text.encode() * 400)], 1)
        await store.append([Append(key, lease.token, (state(),), b"1")], 1)
        await turn(store, lease, "last", key=key, at=1 if key is KEY else 9)
    assert found(tmp_path, SECRET)
    match how:
        case "delete":
            await store.delete(KEY)
        case "expire":
            assert await store.expire("helper", before_ns=5) == [KEY]
        case "trim":
            assert await store.trim("helper", max_events=3, max_bytes=0) == 2 * 12
    try:
        assert not found(tmp_path, SECRET)
        assert len((await store.events(other, 14 if how == "trim" else 0, 99))[0]) == (3 if how == "trim" else 17)
    finally:
        await store.close()
    assert not found(tmp_path, SECRET)


def found(directory: Path, text: str) -> list[Path]:
    """The files that have it."""
    return [path for path in directory.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


async def test_files_that_a_crash_left_are_swept(tmp_path: Path) -> None:
    store = SqlStore(f"sqlite:///{tmp_path}/conversations.db", tmp_path / "blobs")
    await store.open()
    await turn(store, await store.acquire(KEY, "", 1), "a", "x" * 100_000)
    await store.close()
    [kept] = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    for stray in (kept.with_name("0" * 64), kept.with_suffix(".new"), tmp_path / "blobs" / "99" / kept.name):
        stray.parent.mkdir(exist_ok=True)
        stray.write_text(SECRET)
    store = SqlStore(f"sqlite:///{tmp_path}/conversations.db", tmp_path / "blobs")
    await store.open()
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == [kept]
    kept.write_text("something else")
    with pytest.raises(errors.DataLoss):
        await store.events(KEY, 0, 9)
    await store.close()


async def test_a_store_of_another_version_is_left_alone(
    store: SqlStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uapi_gateway.conversations.tables.VERSION", 99)
    with pytest.raises(errors.FailedPrecondition, match="another version"):
        await make().open()


def test_other_databases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mysql"):
        SqlStore("mysql://localhost/x", tmp_path)
    with pytest.raises(ValueError, match="names no file"):
        SqlStore("sqlite://", tmp_path)


@pytest.mark.parametrize("name", ["", "x" * 201, "ü", "a\nb", "a\0b"])
async def test_a_conversation_has_a_name(store: SqlStore, name: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        await store.acquire(Key("alice", "helper", name), "", 1)


async def message_s_way(store: SqlStore) -> None:
    """All that is done for a message, as often as PostgreSQL needs to settle on plans."""
    for number in range(12):
        lease = await store.acquire(KEY, "", 1)
        await store.append([append(lease, said(f"m{number}"), begun(f"m{number}"))], 1)
        await store.acquire(KEY, "", 1, token=lease.token)
        await store.append([Append(KEY, lease.token, (state(), completed(f"m{number}")), b"1")], 1)
        await store.events(KEY, 3, 9)
        await store.events(KEY, 0, 9, message_id="m0")
        await store.events(KEY, 0, 9, backwards=True)
        await store.find(KEY)
        await store.find(KEY, "m0")
        await store.messages(KEY, 20, 2, statuses=[proto.MESSAGE_STATUS_COMPLETED])


async def test_sqlite_looks_everything_up(tmp_path: Path) -> None:
    store = SqlStore(f"sqlite:///{tmp_path}/conversations.db", tmp_path / "blobs")
    await store.open()
    assert isinstance(store._database, Sqlite)
    statements: list[str] = []
    for engine in (store._database._reader, store._database._writer):
        event.listen(engine, "checkout", lambda driver, *_: driver.set_trace_callback(statements.append))
    await message_s_way(store)
    with contextlib.closing(sqlite3.connect(tmp_path / "conversations.db")) as connection:
        plans = {
            (statement, step[3])
            for statement in statements
            if statement.startswith(("SELECT", "INSERT", "UPDATE", "WITH"))
            for step in connection.execute(f"EXPLAIN QUERY PLAN {statement}")
        }
    assert len(plans) > 20
    assert not [plan for plan in plans if plan[1].startswith("SCAN conversation")]
    await store.close()


@pytest.mark.integration
async def test_postgresql_looks_everything_up(postgresql_server: Server, tmp_path: Path) -> None:
    url = postgresql_server.database()
    store = SqlStore(url, tmp_path)
    await store.open()
    await message_s_way(store)
    await store.close()
    connection = await asyncpg.connect(url)

    async def told() -> list[asyncpg.Record]:
        # To make an index its table is read.
        wanted = "SELECT relname, seq_scan - (SELECT count(*) FROM pg_index WHERE indrelid = relid) AS read, idx_scan"
        rows = await connection.fetch(f"{wanted} FROM pg_stat_user_tables WHERE relname = ANY($1)", names)
        return rows if all(row["idx_scan"] for row in rows) else []

    names = [table.name for table in (tables.conversations, tables.events, tables.messages)]
    # A connection tells it when it ends.
    found = await eventually(told, timeout_s=30)
    await connection.close()
    assert {row["relname"]: row["read"] for row in found} == dict.fromkeys(names, 0)


async def test_what_no_database_has_harms_nobody(store: SqlStore) -> None:
    lease = await store.acquire(KEY, "", 1)
    [answer] = await store.append([append(lease, said("a"), begun("a", 2**32 - 1))], 1)
    assert written(answer) == 2
    assert await store.events(KEY, 2**64 - 1, 9) == ([], False)
    far = base64.b64encode(f"{2**70}:{2**70}".encode()).decode()
    assert (await store.list(principal=None, agent="", page_size=1, page_token=far)).conversations
    near = base64.b64encode(f"{-(2**70)}:{-(2**70)}".encode()).decode()
    assert not (await store.list(principal=None, agent="", page_size=1, page_token=near)).conversations
    for wrong in (
        store.acquire(Key("a\0", "helper", "first"), "", 1),
        store.events(KEY, 0, 9, message_id="a\0"),
        store.find(KEY, "a\0"),
        store.list(principal="a\0", agent="", page_size=1, page_token=""),
    ):
        with pytest.raises(errors.InvalidArgument):
            await wrong


async def test_many_appends_in_one_transaction(store: SqlStore) -> None:
    """What comes of random batches is what a list would have."""
    keys = [Key("alice", "helper", f"c{n}") for n in range(40)]
    leases = {key: await store.acquire(key, "", 1) for key in keys}
    said_to: dict[Key, list[str]] = {key: [] for key in keys}
    chance = random.Random(0)
    for _ in range(20):
        batch = []
        for key in chance.choices(keys, k=chance.choice((1, 3, 37, 300))):
            name = f"m{len(said_to[key])}"
            batch.append(append(leases[key], said(name), completed(name, "x" * chance.randrange(200)), key=key))
            said_to[key] += [
                f"{2 * len(said_to[key]) // 2 + 1} message {name}",
                f"{len(said_to[key]) + 2} completion {name}",
            ]
        assert all(isinstance(answer, Appended) and answer.known is None for answer in await store.append(batch, 1))
    for key, texts_ in said_to.items():
        assert texts(await everything(store, key)) == texts_


async def everything(store: SqlStore, key: Key) -> list[proto.Event]:
    events: list[proto.Event] = []
    more = True
    while more:
        page, more = await store.events(key, len(events), 0)
        events += page
    return events


WRITER = """
import asyncio, sys
from pathlib import Path
from tests.uapi_gateway.conversations.saying import KEY, append, completed, said
from uapi_gateway.conversations.sql import SqlStore

async def main(url, blobs):
    store = SqlStore(url, Path(blobs))
    await store.open()
    lease = await store.acquire(KEY, "", 1)
    for number in range(1_000_000):
        text = "x" * (70_000 if number % 10 == 0 else 7)
        [answer] = await store.append([append(lease, said(f"m{number}"), completed(f"m{number}", text))], 1)
        print(answer.last_sequence, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.integration
async def test_what_a_killed_writer_was_told_is_there(url: str, make: Make, tmp_path: Path) -> None:
    with (tmp_path / "told").open("wb") as told:
        command = [sys.executable, "-c", WRITER, url, str(tmp_path / "blobs")]
        process = subprocess.Popen(command, stdout=told, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        until(lambda: (tmp_path / "told").read_text().count("\n") > 25 or process.poll() is not None, timeout_s=60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    acknowledged = int((tmp_path / "told").read_text().split("\n")[-2])
    assert acknowledged > 50
    store = make()
    await store.open()
    events = await everything(store, KEY)
    assert acknowledged <= len(events) <= acknowledged + 2
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [len(event.completion.parts[0].text) for event in events[1::2]][:11] == [70_000, *[7] * 9, 70_000]
    await turn(store, await store.acquire(KEY, "", 1), "after")


@pytest.mark.integration
async def test_a_lost_server_is_told_and_found_again(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    server = request.getfixturevalue("postgresql_server")
    store = SqlStore(server.database(), tmp_path)
    await store.open()
    lease = await store.acquire(KEY, "", 1)
    await turn(store, lease, "a")
    server.stop()
    try:
        for gone in (store.append([append(lease, said("b"))], 1), store.find(KEY), store.acquire(KEY, "", 1)):
            with pytest.raises(errors.StoreUnavailable):
                await gone
    finally:
        server.start()
    again = append(lease, said("b"), after=3)

    async def appended() -> bool:
        with contextlib.suppress(errors.StoreUnavailable):  # connections of before may fail once each
            return written((await store.append([again], 1))[0]) == 4
        return False

    await eventually(appended, timeout_s=30)
    server.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    await eventually(appended, timeout_s=30)
    assert texts(await everything(store, KEY))[3:] == ["4 message b"]
    await store.close()


async def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqlStore(f"sqlite:///{tmp_path}/conversations.db", tmp_path / "blobs")
    await store.open()
    lease = await store.acquire(KEY, "", 1)
    await store._database.write(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1"))
    with pytest.raises(errors.StoreUnavailable, match="full"):
        await store.append([append(lease, said("a", "x" * 60_000))], 1)
    await store._database.write(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 100000"))
    await turn(store, lease, "a")
    await store.close()


async def test_a_cancellation_is_known_as_long_as_its_message_has_not_ended(store: SqlStore, make: Make) -> None:
    lease = await store.acquire(KEY, "", 1)
    asked = proto.Event(message_id="a", cancellation=proto.Cancellation())
    await store.append([append(lease, said("a"), begun("a"), asked, said("b"))], 1)
    again = await make().acquire(KEY, "", 1)
    assert again.cancelled == {"a"}
    assert [info.status for info, _ in again.messages] == [proto.MESSAGE_STATUS_RUNNING, proto.MESSAGE_STATUS_PENDING]
    assert [info.status for info in (await store.find(KEY)).messages] == [info.status for info, _ in again.messages]
    interruption = proto.Event(message_id="a", interruption=proto.Interruption())
    await store.append([append(again, interruption, begun("a"))], 1)
    again = await store.acquire(KEY, "", 1)
    assert again.cancelled == {"a"}
    assert again.messages[0][0].status == proto.MESSAGE_STATUS_RUNNING
    await store.append([append(again, failed("a", 1))], 1)
    again = await store.acquire(KEY, "", 1)
    assert (again.cancelled, [info.message_id for info, _ in again.messages]) == (frozenset(), ["b"])


async def test_what_is_too_much_for_a_worker_can_only_be_ended(
    store: SqlStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "LEASE_BYTES", 200_000)
    lease = await store.acquire(KEY, "", 1)
    for name in ("a", "b"):
        await store.append([append(lease, said(name, "x" * 90_000))], 1)
    assert len((await store.acquire(KEY, "", 1)).messages) == 2
    lease = await store.acquire(KEY, "", 1)
    await store.append([append(lease, said("c", "x" * 60_000))], 1)
    monkeypatch.setattr(store, "_event", None)  # nothing of it is read
    with pytest.raises(errors.ConversationFull, match="cancel"):
        await store.acquire(KEY, "", 1)
    # Not taken.
    [answer] = await store.append([append(lease, begun("a"))], 1)
    assert written(answer) == 4
    to_end = await store.acquire(KEY, "", 1, to_end=True)
    assert [info.message_id for info, _ in to_end.messages] == ["a", "b", "c"]
    await store.append([append(to_end, failed("a", 1))], 1)
    assert len((await make().acquire(KEY, "", 1, existing=True)).messages) == 2


async def test_who_only_ends_messages_or_goes_on_makes_no_conversation(store: SqlStore) -> None:
    with pytest.raises(errors.ConversationNotFound):
        await store.acquire(KEY, "", 1, to_end=True)
    with pytest.raises(errors.ConversationNotFound):
        await store.acquire(KEY, "", 1, existing=True)
    with pytest.raises(errors.ConversationNotFound):
        await store.find(KEY)
