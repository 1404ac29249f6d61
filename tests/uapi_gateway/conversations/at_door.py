"""A worker's side of the event log's door."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from agentruntime._proto.uapi.v1 import conversation_service_pb2 as conversations
from agentruntime._proto.uapi.v1 import event_log_pb2 as proto

from tests.uapi_gateway.conversations.memory import MemoryStore
from tests.uapi_gateway.conversations.test_log import running
from uapi_gateway.conversations.door import LogDoor
from uapi_gateway.conversations.ends import Ends
from uapi_gateway.conversations.log import EventLog
from uapi_gateway.kernel.peers import Peer
from uapi_gateway.registry import Registry

LENGTH = struct.Struct(">I")


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
                (size,) = LENGTH.unpack(await self.reader.readexactly(LENGTH.size))
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
        self.writer.write(LENGTH.pack(len(frame)) + frame)

    async def reply(self) -> proto.LogReply:
        return await asyncio.wait_for(self.replies.get(), 10)

    async def ask(self, request: proto.LogRequest) -> proto.LogReply:
        self.send(request)
        reply = await self.reply()
        assert reply.id == request.id
        return reply

    async def open(self, conversation_id: str = "c", token: int = 0) -> proto.Opened:
        reply = await self.ask(opening(conversation_id, token))
        assert reply.HasField("opened"), reply
        return reply.opened

    async def close(self) -> None:
        self.writer.close()
        await asyncio.gather(self.serving, self._reading)


def opening(conversation_id: str = "c", token: int = 0) -> proto.LogRequest:
    return proto.LogRequest(open=proto.OpenConversation(conversation_id=conversation_id, token=token))


def appending(token: int, *events: conversations.Event, conversation_id: str = "c") -> proto.LogRequest:
    return proto.LogRequest(append=proto.AppendEvents(conversation_id=conversation_id, token=token, events=events))


def reading(conversation_id: str = "c", **fields: object) -> proto.ReadEvents:
    return proto.ReadEvents(conversation_id=conversation_id, **fields)  # type: ignore[arg-type]  # as the caller says


@asynccontextmanager
async def door_opened(registry: Registry | None = None) -> AsyncIterator[tuple[LogDoor, EventLog, MemoryStore]]:
    async with running() as (log, store):
        yield LogDoor(log, Ends(registry or Registry())), log, store


@asynccontextmanager
async def working(door: LogDoor, agent: str = "a", number: int = 1) -> AsyncIterator[Worker]:
    worker = Worker(door, agent, number)
    await worker.connect()
    try:
        yield worker
    finally:
        await worker.close()
