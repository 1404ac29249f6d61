"""The event log's protocol (`event_log.proto`) on the connections of workers.

What a worker appends costs no task and no future of its own, and many answers share a frame. A connection that says
what nobody may say ends, with a line in the gateway's log.
"""

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from agentruntime import log, status
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as conversations
from agentruntime._proto.uapi.v1 import event_log_pb2 as proto
from agentruntime.errors import AgentError, Internal, InvalidArgument, LeaseLost, ResourceExhausted
from google.protobuf.message import DecodeError

from uapi_gateway.conversations.ends import Ends
from uapi_gateway.conversations.leases import Hold
from uapi_gateway.conversations.log import EventLog
from uapi_gateway.conversations.store import Append, Appended, Key
from uapi_gateway.forwarding import Allowance
from uapi_gateway.kernel.peers import Peer

_log = log.get("uapi_gateway.conversations")
_LENGTH = struct.Struct(">I")
LONGEST_FRAME_BYTES = 16 * 2**20
# Requests of a connection that are not answered yet, beyond which it is not read; those of a frame, of which workers
# send 1024; and events that are appended together.
MOST_REQUESTS, MOST_IN_FRAME, MOST_EVENTS = 4096, 4096, 1024
# Watches of a connection, and of all.
MOST_WATCHES, _WATCHES_OF_ALL = 1024, 16_384
# Of a worker; it needs one.
_MOST_CONNECTIONS = 4
# What one that does not read its answers may have waiting.
_MOST_UNREAD_BYTES = 64 * 2**20
# Answers are sent as soon as they have come to so much.
_FULL_BYTES = 2**20
# One answer, with what is around it.
_LARGEST_REPLY_BYTES = LONGEST_FRAME_BYTES - 1024
_LONGEST_ID, _LONGEST_PRINCIPAL = 200, 2048
_Work = Callable[[proto.LogRequest], Coroutine[Any, Any, None]]


class LogDoor:
    """Lets workers in.

    Args:
        log: what they come for.
        ends: what is known of workers that have ended.
        held_bytes: of requests that are not answered yet, of all workers; one agent has no more than it leaves.
    """

    def __init__(self, log: EventLog, ends: Ends, *, held_bytes: int = 256 * 2**20) -> None:
        self.log = log
        self.ends = ends
        self.allowance = Allowance(held_bytes)
        # Counted, of which one agent has no more than it leaves, too.
        self.watches = Allowance(_WATCHES_OF_ALL)
        # Connections that wait for room.
        self.blocked: list[Connection] = []
        self._connected: Counter[tuple[str, str, int]] = Counter()

    async def handle(self, connection: socket.socket, peer: Peer) -> None:
        """Serves one connection until it ends."""
        # A worker's processes are one worker.
        worker = (peer.agent, peer.worker_id, 0 if peer.worker_id else peer.pid)
        if self._connected[worker] >= _MOST_CONNECTIONS:
            return
        self._connected[worker] += 1
        served = Connection(self, peer)
        try:
            # The transport closes what it was given, and the caller its own.
            await asyncio.get_running_loop().connect_accepted_socket(lambda: served, connection.dup())
            await served.closed
        finally:
            served.leave()
            self._connected[worker] -= 1
            if not self._connected[worker]:
                del self._connected[worker]

    def give_back(self, agent: str, size_bytes: int) -> None:
        """There is room again."""
        self.allowance.give_back(agent, size_bytes)
        blocked, self.blocked = self.blocked, []
        for connection in blocked:
            connection.take_up()


class _Charge:
    """What a frame holds until all its requests are answered."""

    __slots__ = ("_agent", "_door", "_open", "_size_bytes")

    def __init__(self, door: LogDoor, agent: str, size_bytes: int, requests: int) -> None:
        self._door, self._agent, self._size_bytes, self._open = door, agent, size_bytes, requests
        if not requests:
            door.give_back(agent, size_bytes)

    def answered(self) -> None:
        self._open -= 1
        if not self._open:
            self._door.give_back(self._agent, self._size_bytes)

    def drop(self) -> None:
        """Nobody waits for the answers any more."""
        if self._open > 0:
            self._open = 0
            self._door.give_back(self._agent, self._size_bytes)


class _HostileError(Exception):
    """What no worker of ours says."""


class Connection(asyncio.Protocol):
    """A worker's, which holds leases as long as it lasts."""

    def __init__(self, door: LogDoor, peer: Peer) -> None:
        self._door = door
        self._log = door.log
        self._peer = peer
        self.name = peer.worker_id or f"{peer.agent}, process {peer.pid}"
        self.worker_id = peer.worker_id
        self.ended = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        # Of the frame that is being received; 0 if there was no room for it yet.
        self._admitted_bytes = 0
        self._blocked = False
        self._paused = False
        self._holds: dict[tuple[str, str], Hold] = {}
        # Requests that are not answered yet, and watches.
        self._requests: dict[int, _Charge] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._watches = 0
        self._replies = proto.LogReplies()
        self._replies_bytes = 0
        self._flushing = False
        self._writable = asyncio.Event()
        self._writable.set()

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

    def leave(self) -> None:
        """Gives back all leases. Idempotent."""
        if self.ended:
            return
        self.ended = True
        for task in self._tasks.values():
            task.cancel()
        if self._admitted_bytes:
            self._door.give_back(self._peer.agent, self._admitted_bytes)
            self._admitted_bytes = 0
        requests, self._requests = self._requests, {}
        for charge in requests.values():
            charge.drop()
        holds, self._holds = self._holds, {}
        for hold in holds.values():
            self._log.release(hold)
        if self._transport is not None:
            self._transport.abort()

    # Frames.

    def take_up(self) -> None:
        """Reads what there is, as far as there is room for it."""
        try:
            while not self.ended and self._take():
                pass
        except (_HostileError, DecodeError, UnicodeDecodeError) as error:
            _log.warning("a worker's connection to the event log ends", worker=self.name, why=str(error))
            self.leave()

    def _take(self) -> bool:
        """Takes one frame; says whether it could."""
        if len(self._received) < _LENGTH.size:
            return False
        (size_bytes,) = _LENGTH.unpack_from(self._received)
        if not 0 < size_bytes <= LONGEST_FRAME_BYTES:
            raise _HostileError(f"a frame of {size_bytes} bytes")
        # Also what is there of a frame is held.
        if not self._admitted_bytes and self._door.allowance.take(self._peer.agent, size_bytes):
            self._admitted_bytes = size_bytes
        if not self._admitted_bytes or len(self._requests) >= MOST_REQUESTS:
            self._door.blocked.append(self)
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
            self._door.give_back(self._peer.agent, size_bytes)
            raise
        charge = _Charge(self._door, self._peer.agent, size_bytes, len(requests))
        try:
            if len(requests) > MOST_IN_FRAME:
                raise _HostileError(f"{len(requests)} requests in a frame")
            for request in requests:
                self._admit(request, charge)
        except _HostileError:
            charge.drop()
            raise
        return True

    def _read(self, wanted: bool) -> None:
        if self._transport is not None and wanted == self._paused:
            self._paused = not wanted
            (self._transport.resume_reading if wanted else self._transport.pause_reading)()

    # Requests.

    def _admit(self, request: proto.LogRequest, charge: _Charge) -> None:
        if self.ended:
            return
        if not request.id or request.id in self._requests or request.id in self._tasks:
            raise _HostileError(f"request {request.id} is there already")
        self._requests[request.id] = charge
        try:
            match request.WhichOneof("operation"):
                case "append":
                    self._append(request.id, request.principal, request.append)
                case "release":
                    self._release(request.id, request.principal, request.release)
                case "open":
                    self._start(request, self._open)
                case "read":
                    self._start(request, self._read_events)
                case "watch":
                    self._start(request, self._watch)
                case "get" | "list" | "cancel" | "delete":
                    self._start(request, self._manage)
                case "stop":
                    self._stop(request.stop)
                    self._answer(proto.LogReply(id=request.id, ended=proto.Ended()))
                case None:
                    raise _HostileError("a request for nothing that is known")
        except AgentError as error:
            self._refuse(request.id, error)

    def _append(self, request_id: int, principal: str, asked: proto.AppendEvents) -> None:
        hold = self._holds.get((principal, asked.conversation_id))
        if hold is None:
            raise _lease_lost(asked.conversation_id)
        if not 0 < len(asked.events) <= MOST_EVENTS:
            raise InvalidArgument(f"{len(asked.events)} events are appended together; send from 1 to {MOST_EVENTS}")
        for event in asked.events:
            if event.WhichOneof("content") is None:
                raise InvalidArgument("an event says nothing that is known")
        expected = asked.expected_state_version if asked.HasField("expected_state_version") else None
        append = Append(hold.key, asked.token, tuple(asked.events), asked.state, expected)
        self._log.append(hold, append, partial(self._appended, request_id))

    def _appended(self, request_id: int, result: Appended | AgentError, now_ns: int) -> None:
        if isinstance(result, AgentError):
            self._refuse(request_id, result)
            return
        reply = proto.LogReply(id=request_id)
        reply.appended.last_sequence = result.last_sequence
        reply.appended.time_ns = now_ns
        if result.known is not None:
            reply.appended.known.CopyFrom(result.known)
        self._answer(reply)

    def _release(self, request_id: int, principal: str, asked: proto.ReleaseConversation) -> None:
        hold = self._holds.get((principal, asked.conversation_id))
        if hold is None or hold.token != asked.token:
            raise _lease_lost(asked.conversation_id)
        del self._holds[principal, asked.conversation_id]
        reply = proto.LogReply(id=request_id, released=proto.Released())
        self._log.release(hold, partial(self._answer, reply))

    def _start(self, request: proto.LogRequest, work: _Work) -> None:
        task = asyncio.create_task(self._guarded(request, work))
        self._tasks[request.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(request.id, None))

    async def _guarded(self, request: proto.LogRequest, work: _Work) -> None:
        try:
            await work(request)
        except AgentError as error:
            self._refuse(request.id, error)
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("a request to the event log failed in an unforeseen way", worker=self.name)
            self._refuse(request.id, Internal("the event log failed; the gateway's log says how"))

    async def _open(self, request: proto.LogRequest) -> None:
        key = self._key(request.principal, request.open.conversation_id)
        hold, lease = await self._log.open(key, self, request.open.token, existing=request.open.existing)
        if not hold.over:
            self._holds[key.principal, key.conversation_id] = hold
        opened = proto.Opened(
            token=lease.token,
            last_sequence=lease.last_sequence,
            state=lease.state,
            state_version=lease.state_version,
            messages=[proto.OpenMessage(info=info, message=message) for info, message in lease.messages],
            lost=[self._door.ends.of(worker_id) for worker_id in self._log.lost(key)],
        )
        reply = proto.LogReply(id=request.id, opened=opened)
        if reply.ByteSize() > _LARGEST_REPLY_BYTES:
            # The store bounds all else.
            del opened.lost[:]
            reply = proto.LogReply(id=request.id, opened=opened)
        self._answer(reply)

    async def _read_events(self, request: proto.LogRequest) -> None:
        asked = request.read
        key = self._key(request.principal, asked.conversation_id)
        events, more = await self._log.read(
            key, asked.after_sequence, asked.limit, message_id=asked.message_id, backwards=asked.backwards
        )
        self._answer(_events(request.id, events, more))

    async def _watch(self, request: proto.LogRequest) -> None:
        asked = request.watch
        key = self._key(request.principal, asked.conversation_id)
        pages = self._log.pages(key, asked.after_sequence, message_id=asked.message_id, follow=True)
        if self._watches >= MOST_WATCHES or not self._door.watches.take(self._peer.agent, 1):
            raise ResourceExhausted("too many conversations are watched at this worker; watch fewer of them")
        self._watches += 1
        # It lasts; what its request holds is small.
        self._settle(request.id)
        try:
            async with aclosing(pages):
                async for page in pages:
                    self._tell(_events(request.id, page, True))
                    await self._writable.wait()
        finally:
            self._watches -= 1
            self._door.watches.give_back(self._peer.agent, 1)
        self._tell(proto.LogReply(id=request.id, ended=proto.Ended()))

    def _stop(self, watch_id: int) -> None:
        if (task := self._tasks.get(watch_id)) is not None and watch_id not in self._requests:
            task.cancel()

    async def _manage(self, request: proto.LogRequest) -> None:
        reply = proto.LogReply(id=request.id)
        match request.WhichOneof("operation"):
            case "get":
                key = self._key(request.principal, request.get.conversation_id)
                found = await self._log.find(key, request.get.message_id)
                reply.get.conversation.CopyFrom(found)
            case "list":
                asked = request.list
                page = await self._log.list(request.principal, self._peer.agent, asked.page_size, asked.page_token)
                reply.list.conversations.extend(page.conversations)
                reply.list.next_page_token = page.next_token
            case "cancel":
                key = self._key(request.principal, request.cancel.conversation_id)
                reply.cancel.status = await self._log.cancel(key, request.cancel.message_id)
            case "delete":
                await self._log.delete(self._key(request.principal, request.delete.conversation_id))
                reply.delete.SetInParent()
        self._answer(reply)

    def _key(self, principal: str, conversation_id: str) -> Key:
        """Of its own agent's conversations, whatever it says."""
        if not 0 < len(principal) <= _LONGEST_PRINCIPAL:
            raise InvalidArgument("a request to the event log names no principal")
        _check_id(conversation_id, "conversation_id")
        return Key(principal, self._peer.agent, conversation_id)

    # What it holds.

    def wanted(self, key: Key) -> None:
        self._tell(proto.LogReply(wanted=_named(key)))

    def cancelled(self, key: Key, message_id: str) -> None:
        self._tell(proto.LogReply(cancelled=proto.MessageKey(conversation=_named(key), message_id=message_id)))

    def lost(self, key: Key) -> None:
        self._holds.pop((key.principal, key.conversation_id), None)
        self._tell(proto.LogReply(lost=_named(key)))

    # Answers.

    def _refuse(self, request_id: int, error: AgentError) -> None:
        reply = proto.LogReply(id=request_id)
        reply.error.code = status.code_of(error).value[0]
        reply.error.reason, reply.error.message = error.reason, error.message
        self._answer(reply)

    def _answer(self, reply: proto.LogReply) -> None:
        self._settle(reply.id)
        self._tell(reply)

    def _settle(self, request_id: int) -> None:
        if (charge := self._requests.pop(request_id, None)) is not None:
            charge.answered()

    def _tell(self, reply: proto.LogReply) -> None:
        if self.ended:
            return
        size_bytes = reply.ByteSize()
        if size_bytes > _LARGEST_REPLY_BYTES:
            reply = proto.LogReply(id=reply.id, error=_TOO_LARGE)
        if self._replies_bytes + size_bytes > _FULL_BYTES:
            self._flush()
        self._replies.replies.append(reply)
        self._replies_bytes += size_bytes
        if self._replies_bytes >= _FULL_BYTES:
            self._flush()
        elif not self._flushing:
            # With all that is answered in this round of the event loop.
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

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


_TOO_LARGE = proto.LogError(
    code=status.code_of(ResourceExhausted("")).value[0],
    reason=ResourceExhausted.reason,
    message=f"the event log's answer is larger than {LONGEST_FRAME_BYTES} bytes: delete the conversation",
)


def _events(request_id: int, events: Sequence[conversations.Event], more: bool) -> proto.LogReply:
    reply = proto.LogReply(id=request_id)
    reply.events.events.extend(events)
    reply.events.more = more
    return reply


def _named(key: Key) -> proto.ConversationKey:
    return proto.ConversationKey(principal=key.principal, conversation_id=key.conversation_id)


def _check_id(text: str, what: str) -> None:
    if not 0 < len(text) <= _LONGEST_ID or not text.isascii() or not text.isprintable():
        raise InvalidArgument(f"{what} has 1 to {_LONGEST_ID} printable ASCII characters")


def _lease_lost(conversation_id: str) -> LeaseLost:
    return LeaseLost(f"this worker does not have conversation '{conversation_id}'")
