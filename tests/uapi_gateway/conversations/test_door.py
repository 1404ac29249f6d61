"""The protocol on the workers' socket: what is answered, what is refused, and what ends a connection."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as conversations
from agentruntime._proto.uapi.v1 import event_log_pb2 as proto

from tests.uapi_gateway.conversations.memory import MemoryStore
from tests.uapi_gateway.conversations.test_log import begun, over, piece, running, said
from tests.waiting import eventually
from uapi_gateway.conversations import door as door_module
from uapi_gateway.conversations.door import LogDoor
from uapi_gateway.conversations.ends import Ends
from uapi_gateway.conversations.log import EventLog
from uapi_gateway.kernel.peers import Peer
from uapi_gateway.registry import Agent, Endpoint, Registry

_LENGTH = struct.Struct(">I")


class Worker:
    """A worker's side of a connection."""

    def __init__(self, door: LogDoor, agent: str = "a", number: int = 1) -> None:
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self.peer = Peer(agent, f"{agent}-{number:02}", 1, 0, number)
        self.serving = asyncio.create_task(self._serve(door))
        self.replies: asyncio.Queue[proto.LogReply] = asyncio.Queue()
        self.frames = 0
        self._ids = 0

    async def _serve(self, door: LogDoor) -> None:
        # As kernel.doors does.
        with self._theirs, suppress(ConnectionError):
            await door.handle(self._theirs, self.peer)

    async def connect(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(sock=self._ours)
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (size,) = _LENGTH.unpack(await self.reader.readexactly(_LENGTH.size))
                replies = proto.LogReplies.FromString(await self.reader.readexactly(size))
                self.frames += 1
                for reply in replies.replies:
                    self.replies.put_nowait(reply)

    def send(self, *requests: proto.LogRequest) -> None:
        for request in requests:
            self._ids += 1
            request.id = request.id or self._ids
            request.principal = request.principal or "local"
        self.write(proto.LogRequests(requests=requests).SerializeToString())

    def write(self, frame: bytes) -> None:
        self.writer.write(_LENGTH.pack(len(frame)) + frame)

    async def reply(self) -> proto.LogReply:
        return await asyncio.wait_for(self.replies.get(), 10)

    async def ask(self, request: proto.LogRequest) -> proto.LogReply:
        self.send(request)
        reply = await self.reply()
        assert reply.id == request.id
        return reply

    async def open(self, conversation_id: str = "c", token: int = 0) -> proto.Opened:
        reply = await self.ask(_open(conversation_id, token))
        assert reply.HasField("opened"), reply
        return reply.opened

    async def close(self) -> None:
        self.writer.close()
        await asyncio.gather(self.serving, self._reading)


def _open(conversation_id: str = "c", token: int = 0) -> proto.LogRequest:
    return proto.LogRequest(open=proto.OpenConversation(conversation_id=conversation_id, token=token))


def _append(token: int, *events: conversations.Event, conversation_id: str = "c") -> proto.LogRequest:
    return proto.LogRequest(append=proto.AppendEvents(conversation_id=conversation_id, token=token, events=events))


def _read(conversation_id: str = "c", **fields: object) -> proto.ReadEvents:
    return proto.ReadEvents(conversation_id=conversation_id, **fields)  # type: ignore[arg-type]  # as the caller says


@asynccontextmanager
async def _opened(registry: Registry | None = None) -> AsyncIterator[tuple[LogDoor, EventLog, MemoryStore]]:
    async with running() as (log, store):
        yield LogDoor(log, Ends(registry or Registry())), log, store


@asynccontextmanager
async def _worker(door: LogDoor, agent: str = "a", number: int = 1) -> AsyncIterator[Worker]:
    worker = Worker(door, agent, number)
    await worker.connect()
    try:
        yield worker
    finally:
        await worker.close()


async def test_a_turn() -> None:
    async with _opened() as (door, log, _), _worker(door) as worker:
        opened = await worker.open()
        assert (opened.last_sequence, len(opened.messages)) == (0, 0)
        reply = await worker.ask(_append(opened.token, said("m"), begun("m")))
        assert reply.appended.last_sequence == 2
        assert reply.appended.time_ns
        again = await worker.ask(_append(opened.token, said("m")))
        assert again.appended.known.message_id == "m"
        await worker.ask(_append(opened.token, piece("m", "hello"), over("m")))
        events = (await worker.ask(proto.LogRequest(read=_read(after_sequence=2)))).events
        assert [event.sequence for event in events.events] == [3, 4]
        backwards = (await worker.ask(proto.LogRequest(read=_read(limit=1, backwards=True)))).events
        assert [event.sequence for event in backwards.events] == [4]
        assert backwards.more
        found = await worker.ask(
            proto.LogRequest(get=conversations.GetConversationRequest(conversation_id="c", message_id="m"))
        )
        assert found.get.conversation.messages[0].status == conversations.MESSAGE_STATUS_COMPLETED
        listed = await worker.ask(proto.LogRequest(list=conversations.ListConversationsRequest()))
        assert [each.conversation_id for each in listed.list.conversations] == ["c"]
        release = proto.LogRequest(release=proto.ReleaseConversation(conversation_id="c", token=opened.token))
        assert (await worker.ask(release)).HasField("released")
        assert not log.figures.open
        refused = await worker.ask(_append(opened.token, piece("m")))
        assert refused.error.reason == "LEASE_LOST"
        deleted = proto.LogRequest(delete=conversations.DeleteConversationRequest(conversation_id="c"))
        assert (await worker.ask(deleted)).HasField("delete")
        missing = await worker.ask(proto.LogRequest(read=_read()))
        assert (missing.error.code, missing.error.reason) == (5, "CONVERSATION_NOT_FOUND")


async def test_who_only_goes_on_makes_no_conversation() -> None:
    async with _opened() as (door, log, store), _worker(door) as worker:
        opening = proto.OpenConversation(conversation_id="c", existing=True)
        assert (await worker.ask(proto.LogRequest(open=opening))).error.reason == "CONVERSATION_NOT_FOUND"
        assert not log.figures.open
        assert not store.kept
        await worker.open()
        assert (await worker.ask(proto.LogRequest(open=opening))).HasField("opened")


async def test_many_appends_share_a_frame_both_ways() -> None:
    async with _opened() as (door, _, store), _worker(door) as worker:
        tokens = {str(n): (await worker.open(str(n))).token for n in range(100)}
        frames, store.batches = worker.frames, []
        worker.send(*(_append(token, said("m"), conversation_id=name) for name, token in tokens.items()))
        assert all([(await worker.reply()).appended.last_sequence == 1 for _ in tokens])
        assert store.batches == [100]
        assert worker.frames - frames == 1


async def test_a_watch_goes_on_until_it_is_stopped_or_its_message_ends() -> None:
    async with _opened() as (door, _, _), _worker(door) as worker, _worker(door, number=2) as watcher:
        token = (await worker.open()).token
        await worker.ask(_append(token, said("m")))
        whole, one = proto.LogRequest(watch=_read()), proto.LogRequest(watch=_read(message_id="m"))
        watcher.send(whole, one)
        for n in range(3):
            await worker.ask(_append(token, piece("m", str(n))))
        await worker.ask(_append(token, over("m")))
        seen: dict[int, list[int]] = {whole.id: [], one.id: []}
        while sum(map(len, seen.values())) < 11:
            reply = await watcher.reply()
            if reply.HasField("ended"):
                assert reply.id == one.id
                seen[one.id].append(0)
            seen[reply.id] += [event.sequence for event in reply.events.events]
        assert seen == {whole.id: [1, 2, 3, 4, 5], one.id: [1, 2, 3, 4, 5, 0]}
        await watcher.ask(proto.LogRequest(stop=whole.id))
        await worker.ask(_append(token, said("n")))
        await asyncio.sleep(0.05)
        assert watcher.replies.empty()


async def test_leases_end_with_their_connection_and_what_is_known_of_the_worker_is_told() -> None:
    registry = Registry()
    async with _opened(registry) as (door, _, _), _worker(door, number=2) as second:
        first = Worker(door)
        await first.connect()
        token = (await first.open()).token
        await first.ask(_append(token, said("m", "Hi"), begun("m")))
        second.send(_open())
        assert (await first.reply()).wanted.conversation_id == "c"
        ended = Endpoint("", False, "a-01", failure="exit status 1", traceback="T")
        registry.put_pool_agent(Agent("a", (), (ended,)))
        await first.close()
        opened = (await second.reply()).opened
        assert opened.token > token
        assert [(each.info.message_id, each.message.parts[0].text) for each in opened.messages] == [("m", "Hi")]
        assert [(each.worker_id, each.reason, each.traceback) for each in opened.lost] == [
            ("a-01", "worker a-01 ended: exit status 1", "T")
        ]


async def test_a_cancellation_and_a_loss_are_told_unasked() -> None:
    async with _opened() as (door, log, _), _worker(door) as worker, _worker(door, number=2) as other:
        token = (await worker.open()).token
        await worker.ask(_append(token, said("m"), begun("m")))
        cancel = proto.LogRequest(cancel=conversations.CancelMessageRequest(conversation_id="c"))
        assert (await other.ask(cancel)).cancel.status == conversations.MESSAGE_STATUS_RUNNING
        told = (await worker.reply()).cancelled
        assert (told.conversation.principal, told.message_id) == ("local", "m")
        delete = proto.LogRequest(delete=conversations.DeleteConversationRequest(conversation_id="c"))
        assert (await other.ask(delete)).HasField("delete")
        assert (await worker.reply()).lost.conversation_id == "c"
        assert (await worker.ask(_append(token, piece("m")))).error.reason == "LEASE_LOST"
        assert not log.figures.open


async def test_an_agent_reaches_its_own_conversations_only() -> None:
    async with _opened() as (door, _, _), _worker(door) as worker, _worker(door, agent="b") as stranger:
        await worker.ask(_append((await worker.open()).token, said("m")))
        for request in (
            proto.LogRequest(get=conversations.GetConversationRequest(conversation_id="c", agent="a")),
            proto.LogRequest(delete=conversations.DeleteConversationRequest(conversation_id="c", agent="a")),
            proto.LogRequest(read=_read()),
        ):
            assert (await stranger.ask(request)).error.reason == "CONVERSATION_NOT_FOUND"
        listed = await stranger.ask(proto.LogRequest(list=conversations.ListConversationsRequest(agent="a")))
        assert not listed.list.conversations
        # Another connection's lease is not its own either.
        assert (await stranger.ask(_append(1, piece("m")))).error.reason == "LEASE_LOST"


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(_LENGTH.pack(0), id="empty"),
        pytest.param(_LENGTH.pack(2**32 - 1), id="endless"),
        pytest.param(_LENGTH.pack(3) + b"\xff\xff\xff", id="no message"),
        pytest.param(_LENGTH.pack(2) + b"\x0a\x00", id="no id"),
        pytest.param(_LENGTH.pack(4) + b"\x0a\x02\x08\x01", id="for nothing"),
    ],
)
async def test_who_says_what_nobody_may_say_is_let_go(frame: bytes) -> None:
    async with _opened() as (door, log, _):
        worker = Worker(door)
        await worker.connect()
        await worker.open()
        worker.writer.write(frame)
        await asyncio.wait_for(worker.serving, 10)
        await worker.close()
        assert not log.figures.open
        assert not door.allowance.held_bytes


async def test_an_id_that_is_in_use_ends_the_connection() -> None:
    async with _opened() as (door, log, _), _worker(door, number=2) as holder:
        await holder.open()
        worker = Worker(door)
        await worker.connect()
        worker.send(_open(), proto.LogRequest(id=1, read=_read()))
        await asyncio.wait_for(worker.serving, 10)
        await worker.close()
        assert log.figures.open == 1
        assert not door.allowance.held_bytes


async def test_what_is_malformed_is_refused() -> None:
    async with _opened() as (door, _, _), _worker(door) as worker:
        token = (await worker.open()).token
        for request in (
            _open(""),
            _open("x" * 201),
            _open("ä"),
            _append(token),
            _append(token, conversations.Event(message_id="m")),
        ):
            assert (await worker.ask(request)).error.reason == "INVALID_ARGUMENT"


async def test_a_worker_that_sends_more_than_is_held_is_not_read_meanwhile() -> None:
    async with running() as (log, store):
        door = LogDoor(log, Ends(Registry()), held_bytes=300_000)
        async with _worker(door) as worker, _worker(door, agent="b") as other:
            token = (await worker.open()).token
            theirs = (await other.open()).token
            store.flowing.clear()
            for n in range(20):
                worker.send(_append(token, said(f"m{n}", "x" * 50_000)))
            await eventually(lambda: door.blocked)
            assert door.allowance.held_bytes <= 150_000 + 4096
            # Another agent has what is left.
            other.send(_append(theirs, said("m")))
            store.flowing.set()
            assert (await other.reply()).appended.last_sequence == 1
            assert [(await worker.reply()).appended.last_sequence for _ in range(20)] == list(range(1, 21))
            assert not door.allowance.held_bytes


async def test_a_worker_that_reads_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "_MOST_UNREAD_BYTES", 2**20)
    async with _opened() as (door, log, _), _worker(door, number=2) as writer:
        token = (await writer.open()).token
        await writer.ask(_append(token, said("m", "x" * 500_000)))
        worker = Worker(door)
        await worker.connect()
        worker.reader._transport.pause_reading()  # type: ignore[attr-defined]  # has no name for it
        for _ in range(20):
            worker.send(proto.LogRequest(read=_read()))
        await asyncio.wait_for(worker.serving, 10)
        worker.writer.transport.abort()
        worker._reading.cancel()
        assert log.held(next(iter(log._leases._places)))


async def test_a_worker_has_few_connections() -> None:
    async with _opened() as (door, _, _):
        workers = [Worker(door) for _ in range(5)]
        for worker in workers:
            await worker.connect()
        await asyncio.wait_for(workers[4].serving, 10)
        for worker in workers:
            await worker.close()


async def test_a_workers_processes_are_one_worker() -> None:
    async with _opened() as (door, _, _):
        workers = [Worker(door) for _ in range(5)]
        for number, worker in enumerate(workers):
            worker.peer = replace(worker.peer, pid=number + 1)
        for worker in workers:
            await worker.connect()
        await asyncio.wait_for(workers[4].serving, 10)
        for worker in workers:
            await worker.close()


async def test_watches_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "MOST_WATCHES", 2)
    async with _opened() as (door, log, _), _worker(door) as worker:
        await worker.open()
        watches = [proto.LogRequest(watch=_read()) for _ in range(3)]
        worker.send(*watches)
        refused = await worker.reply()
        assert (refused.id, refused.error.reason) == (watches[2].id, "RESOURCE_EXHAUSTED")
        assert door.watches.held_bytes == 2
        await worker.ask(proto.LogRequest(stop=watches[0].id))
        await eventually(lambda: door.watches.held_bytes == 1)
        worker.send(proto.LogRequest(watch=_read()))
        await eventually(lambda: log.figures.watchers == 2)
    await eventually(lambda: not door.watches.held_bytes)


async def test_what_is_there_of_a_frame_is_held() -> None:
    async with running() as (log, _):
        door = LogDoor(log, Ends(Registry()), held_bytes=300_000)
        async with _worker(door) as other:
            worker = Worker(door, number=2)
            await worker.connect()
            worker.writer.write(_LENGTH.pack(140_000) + b"\x0a")
            await eventually(lambda: door.allowance.held_bytes == 140_000)
            # There is no room for another one of the agent, as long as the first is not there.
            other.send(_open())
            other.writer.write(_LENGTH.pack(20_000) + b"\x0a")
            await eventually(lambda: door.blocked)
            await worker.close()
            await eventually(lambda: door.allowance.held_bytes == 20_000)
        await eventually(lambda: not door.allowance.held_bytes)


async def test_a_frame_has_no_more_requests_than_a_connection() -> None:
    async with _opened() as (door, _, _):
        worker = Worker(door)
        await worker.connect()
        worker.send(*(proto.LogRequest(read=_read()) for _ in range(door_module.MOST_IN_FRAME + 1)))
        await asyncio.wait_for(worker.serving, 10)
        await worker.close()
        assert door_module.MOST_IN_FRAME <= door_module.MOST_REQUESTS
        assert not door.allowance.held_bytes


async def test_no_frame_is_larger_than_one_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "LONGEST_FRAME_BYTES", 2**20)
    monkeypatch.setattr(door_module, "_LARGEST_REPLY_BYTES", 2**20 - 1024)
    monkeypatch.setattr(door_module, "_FULL_BYTES", 2**19)
    async with _opened() as (door, _, _), _worker(door) as worker:
        token = (await worker.open()).token
        for name in ("m", "n"):
            await worker.ask(_append(token, said(name, "x" * 600_000)))
        frames = worker.frames
        worker.send(*(proto.LogRequest(read=_read(message_id=name)) for name in ("m", "n")))
        assert all([(await worker.reply()).events.events for _ in range(2)])
        assert worker.frames == frames + 2
        assert (await worker.ask(proto.LogRequest(read=_read()))).error.reason == "RESOURCE_EXHAUSTED"


async def test_what_is_known_of_lost_workers_is_left_out_of_what_would_be_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = Registry()
    async with _opened(registry) as (door, _, _):
        first = Worker(door)
        await first.connect()
        token = (await first.open()).token
        await first.ask(_append(token, said("m"), begun("m")))
        ended = Endpoint("", False, "a-01", failure="exit status 1", traceback="T" * 4096)
        registry.put_pool_agent(Agent("a", (), (ended,)))
        await first.close()
        monkeypatch.setattr(door_module, "_LARGEST_REPLY_BYTES", 4096)
        async with _worker(door, number=2) as second:
            opened = await second.open()
            assert len(opened.messages) == 1
            assert not opened.lost
