"""Frames of the event log's protocol (`event_log.proto`) on a worker's connection, and how much of them is held.

What a frame takes of the room is given back when all its requests are answered; many answers share a frame. A
connection that says what nobody may say ends, with a line in the gateway's log. What requests mean, `door.py` knows.
"""

import asyncio
import struct
from abc import ABC, abstractmethod
from typing import Protocol

from agentruntime import log, status
from agentruntime._proto.uapi.v1 import event_log_pb2 as proto
from agentruntime.errors import AgentError, ResourceExhausted
from google.protobuf.message import DecodeError

from uapi_gateway.forwarding import Allowance

_log = log.get("uapi_gateway.conversations")
_LENGTH = struct.Struct(">I")
LONGEST_FRAME_BYTES = 16 * 2**20
# Requests of a connection that are not answered yet, beyond which it is not read; those of a frame, of which workers
# send 1024.
MOST_REQUESTS, MOST_IN_FRAME = 4096, 4096
# What one that does not read its answers may have waiting.
_MOST_UNREAD_BYTES = 64 * 2**20
# Answers are sent as soon as they have come to so much.
_FULL_BYTES = 2**20
# One answer, with what is around it.
LARGEST_REPLY_BYTES = LONGEST_FRAME_BYTES - 1024
_TOO_LARGE = proto.LogError(
    code=status.code_of(ResourceExhausted("")).value[0],
    reason=ResourceExhausted.reason,
    message=f"the event log's answer is larger than {LONGEST_FRAME_BYTES} bytes: delete the conversation",
)


class HostileError(Exception):
    """What no worker of ours says."""


class Waiting(Protocol):
    """Who waits for room."""

    def take_up(self) -> None:
        """There may be some."""


class Room:
    """For requests that are not answered yet, of all workers; one agent has no more than it leaves."""

    def __init__(self, most_bytes: int) -> None:
        self.allowance = Allowance(most_bytes)
        self.waiting: list[Waiting] = []

    def give_back(self, agent: str, size_bytes: int) -> None:
        """There is room again."""
        self.allowance.give_back(agent, size_bytes)
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each.take_up()


class _Charge:
    """What a frame holds until all its requests are answered."""

    __slots__ = ("_agent", "_open", "_room", "_size_bytes")

    def __init__(self, room: Room, agent: str, size_bytes: int, requests: int) -> None:
        self._room, self._agent, self._size_bytes, self._open = room, agent, size_bytes, requests
        if not requests:
            room.give_back(agent, size_bytes)

    def answered(self) -> None:
        self._open -= 1
        if not self._open:
            self._room.give_back(self._agent, self._size_bytes)

    def drop(self) -> None:
        """Nobody waits for the answers any more."""
        if self._open > 0:
            self._open = 0
            self._room.give_back(self._agent, self._size_bytes)


class FramedConnection(asyncio.Protocol, ABC):
    """A connection on which requests come and answers go.

    Args:
        room: what requests take of.
        agent: whose worker it is.
        name: the worker's, for people.
    """

    def __init__(self, room: Room, agent: str, name: str) -> None:
        self.name = name
        self.ended = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room = room
        self._agent = agent
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        # Of the frame that is being received; 0 if there was no room for it yet.
        self._admitted_bytes = 0
        self._paused = False
        # Requests that are not answered yet.
        self._requests: dict[int, _Charge] = {}
        self._replies = proto.LogReplies()
        self._replies_bytes = 0
        self._flushing = False
        self._writable = asyncio.Event()
        self._writable.set()

    @abstractmethod
    def admit(self, request: proto.LogRequest) -> None:
        """Takes up a request, which is to be answered once.

        Raises:
            AgentError: it is refused.
            HostileError: no worker of ours would ask that.
        """

    @abstractmethod
    def goes_on(self, request_id: int) -> bool:
        """Whether something goes on under that id, though it may be answered."""

    def leave(self) -> None:
        """Ends the connection. Idempotent."""
        if self.ended:
            return
        self.ended = True
        if self._admitted_bytes:
            self._room.give_back(self._agent, self._admitted_bytes)
            self._admitted_bytes = 0
        requests, self._requests = self._requests, {}
        for charge in requests.values():
            charge.drop()
        if self._transport is not None:
            self._transport.abort()

    # asyncio's calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.leave()
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        self.take_up()

    # Requests.

    def take_up(self) -> None:
        """Reads what there is, as far as there is room for it."""
        try:
            while not self.ended and self._take():
                pass
        except (HostileError, DecodeError, UnicodeDecodeError) as error:
            _log.warning("a worker's connection to the event log ends", worker=self.name, why=str(error))
            self.leave()

    def is_unanswered(self, request_id: int) -> bool:
        """Whether it waits for its answer."""
        return request_id in self._requests

    def _take(self) -> bool:
        """Takes one frame; says whether it could."""
        if len(self._received) < _LENGTH.size:
            return False
        (size_bytes,) = _LENGTH.unpack_from(self._received)
        if not 0 < size_bytes <= LONGEST_FRAME_BYTES:
            raise HostileError(f"a frame of {size_bytes} bytes")
        # Also what is there of a frame is held.
        if not self._admitted_bytes and self._room.allowance.take(self._agent, size_bytes):
            self._admitted_bytes = size_bytes
        if not self._admitted_bytes or len(self._requests) >= MOST_REQUESTS:
            self._room.waiting.append(self)
            self._read(False)
            return False
        self._read(True)
        if len(self._received) < _LENGTH.size + size_bytes:
            return False
        self._admitted_bytes = 0
        with memoryview(self._received) as view:
            frame = bytes(view[_LENGTH.size : _LENGTH.size + size_bytes])
        del self._received[: _LENGTH.size + size_bytes]
        try:
            requests = proto.LogRequests.FromString(frame).requests
        except DecodeError:
            self._room.give_back(self._agent, size_bytes)
            raise
        charge = _Charge(self._room, self._agent, size_bytes, len(requests))
        try:
            if len(requests) > MOST_IN_FRAME:
                raise HostileError(f"{len(requests)} requests in a frame")
            for request in requests:
                self._enter(request, charge)
        except HostileError:
            charge.drop()
            raise
        return True

    def _enter(self, request: proto.LogRequest, charge: _Charge) -> None:
        if self.ended:
            return
        if not request.id or request.id in self._requests or self.goes_on(request.id):
            raise HostileError(f"request {request.id} is there already")
        self._requests[request.id] = charge
        try:
            self.admit(request)
        except AgentError as error:
            self.refuse(request.id, error)

    def _read(self, wanted: bool) -> None:
        if self._transport is not None and wanted == self._paused:
            self._paused = not wanted
            (self._transport.resume_reading if wanted else self._transport.pause_reading)()

    # Answers.

    def refuse(self, request_id: int, error: AgentError) -> None:
        """Answers a request by an error."""
        reply = proto.LogReply(id=request_id)
        reply.error.code = status.code_of(error).value[0]
        reply.error.reason, reply.error.message = error.reason, error.message
        self.answer(reply)

    def answer(self, reply: proto.LogReply) -> None:
        """Answers a request, which holds no room from then on."""
        self.settle(reply.id)
        self.tell(reply)

    def settle(self, request_id: int) -> None:
        """A request holds no room any more, answered or not."""
        if (charge := self._requests.pop(request_id, None)) is not None:
            charge.answered()

    def tell(self, reply: proto.LogReply) -> None:
        """Sends something, with all else that is to be sent in this round of the event loop."""
        if self.ended:
            return
        size_bytes = reply.ByteSize()
        if size_bytes > LARGEST_REPLY_BYTES:
            reply = proto.LogReply(id=reply.id, error=_TOO_LARGE)
        if self._replies_bytes + size_bytes > _FULL_BYTES:
            self._flush()
        self._replies.replies.append(reply)
        self._replies_bytes += size_bytes
        if self._replies_bytes >= _FULL_BYTES:
            self._flush()
        elif not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    async def writable(self) -> None:
        """Returns when its peer has read so much that more may be sent."""
        await self._writable.wait()

    def _flush(self) -> None:
        self._flushing = False
        if self.ended or self._transport is None or not self._replies.replies:
            return
        frame = self._replies.SerializeToString()
        self._replies = proto.LogReplies()
        self._replies_bytes = 0
        self._transport.write(_LENGTH.pack(len(frame)) + frame)
        if self._transport.get_write_buffer_size() > _MOST_UNREAD_BYTES:
            _log.warning("a worker does not read what the event log says; its connection ends", worker=self.name)
            self.leave()
