"""What may come on a connection to the event log, and how much of it is held."""

import asyncio

import pytest
from agentruntime._proto.uapi.v1 import event_log_pb2 as proto

from tests.uapi_gateway.conversations.at_door import LENGTH, Worker, appending, door_opened, opening, reading, working
from tests.uapi_gateway.conversations.test_log import running, said
from tests.waiting import eventually
from uapi_gateway.conversations import frames
from uapi_gateway.conversations.door import LogDoor
from uapi_gateway.conversations.ends import Ends
from uapi_gateway.registry import Registry


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(LENGTH.pack(0), id="empty"),
        pytest.param(LENGTH.pack(2**32 - 1), id="endless"),
        pytest.param(LENGTH.pack(3) + b"\xff\xff\xff", id="no message"),
        pytest.param(LENGTH.pack(2) + b"\x0a\x00", id="no id"),
        pytest.param(LENGTH.pack(4) + b"\x0a\x02\x08\x01", id="for nothing"),
    ],
)
async def test_who_says_what_nobody_may_say_is_let_go(frame: bytes) -> None:
    async with door_opened() as (door, log, _):
        worker = Worker(door)
        await worker.connect()
        await worker.open()
        worker.writer.write(frame)
        await asyncio.wait_for(worker.serving, 10)
        await worker.close()
        assert not log.figures.open
        assert not door.room.allowance.held_bytes


async def test_an_id_that_is_in_use_ends_the_connection() -> None:
    async with door_opened() as (door, log, _), working(door, number=2) as holder:
        await holder.open()
        worker = Worker(door)
        await worker.connect()
        worker.send(opening(), proto.LogRequest(id=1, read=reading()))
        await asyncio.wait_for(worker.serving, 10)
        await worker.close()
        assert log.figures.open == 1
        assert not door.room.allowance.held_bytes


async def test_a_worker_that_sends_more_than_is_held_is_not_read_meanwhile() -> None:
    async with running() as (log, store):
        door = LogDoor(log, Ends(Registry()), held_bytes=300_000)
        async with working(door) as worker, working(door, agent="b") as other:
            token = (await worker.open()).token
            theirs = (await other.open()).token
            store.flowing.clear()
            for n in range(20):
                worker.send(appending(token, said(f"m{n}", "x" * 50_000)))
            await eventually(lambda: door.room.waiting)
            assert door.room.allowance.held_bytes <= 150_000 + 4096
            # Another agent has what is left.
            other.send(appending(theirs, said("m")))
            store.flowing.set()
            assert (await other.reply()).appended.last_sequence == 1
            assert [(await worker.reply()).appended.last_sequence for _ in range(20)] == list(range(1, 21))
            assert not door.room.allowance.held_bytes


async def test_a_worker_that_reads_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_MOST_UNREAD_BYTES", 2**20)
    async with door_opened() as (door, log, _), working(door, number=2) as writer:
        token = (await writer.open()).token
        await writer.ask(appending(token, said("m", "x" * 500_000)))
        worker = Worker(door)
        await worker.connect()
        worker.reader._transport.pause_reading()  # type: ignore[attr-defined]  # has no name for it
        for _ in range(20):
            worker.send(proto.LogRequest(read=reading()))
        await asyncio.wait_for(worker.serving, 10)
        worker.writer.transport.abort()
        worker._reading.cancel()
        assert log.held(next(iter(log._leases._places)))


async def test_what_is_there_of_a_frame_is_held() -> None:
    async with running() as (log, _):
        door = LogDoor(log, Ends(Registry()), held_bytes=300_000)
        async with working(door) as other:
            worker = Worker(door, number=2)
            await worker.connect()
            worker.writer.write(LENGTH.pack(140_000) + b"\x0a")
            await eventually(lambda: door.room.allowance.held_bytes == 140_000)
            # There is no room for another one of the agent, as long as the first is not there.
            other.send(opening())
            other.writer.write(LENGTH.pack(20_000) + b"\x0a")
            await eventually(lambda: door.room.waiting)
            await worker.close()
            await eventually(lambda: door.room.allowance.held_bytes == 20_000)
        await eventually(lambda: not door.room.allowance.held_bytes)


async def test_a_frame_has_no_more_requests_than_a_connection() -> None:
    async with door_opened() as (door, _, _):
        worker = Worker(door)
        await worker.connect()
        worker.send(*(proto.LogRequest(read=reading()) for _ in range(frames.MOST_IN_FRAME + 1)))
        await asyncio.wait_for(worker.serving, 10)
        await worker.close()
        assert frames.MOST_IN_FRAME <= frames.MOST_REQUESTS
        assert not door.room.allowance.held_bytes


async def test_no_frame_is_larger_than_one_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "LONGEST_FRAME_BYTES", 2**20)
    monkeypatch.setattr(frames, "LARGEST_REPLY_BYTES", 2**20 - 1024)
    monkeypatch.setattr(frames, "_FULL_BYTES", 2**19)
    async with door_opened() as (door, _, _), working(door) as worker:
        token = (await worker.open()).token
        for name in ("m", "n"):
            await worker.ask(appending(token, said(name, "x" * 600_000)))
        before = worker.frames
        worker.send(*(proto.LogRequest(read=reading(message_id=name)) for name in ("m", "n")))
        assert all([(await worker.reply()).events.events for _ in range(2)])
        assert worker.frames == before + 2
        assert (await worker.ask(proto.LogRequest(read=reading()))).error.reason == "RESOURCE_EXHAUSTED"
