"""Where workers come to the event log: what their requests (`event_log.proto`) mean, and what they hold.

What a worker appends costs no task and no future of its own. How requests come and answers go, `frames.py` knows.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from agentruntime import log
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as conversations
from agentruntime._proto.uapi.v1 import event_log_pb2 as proto
from agentruntime.errors import AgentError, Internal, InvalidArgument, LeaseLost, ResourceExhausted

from uapi_gateway.conversations import frames
from uapi_gateway.conversations.ends import Ends
from uapi_gateway.conversations.frames import FramedConnection, HostileError, Room
from uapi_gateway.conversations.leases import Hold
from uapi_gateway.conversations.log import EventLog
from uapi_gateway.conversations.store import Append, Appended, Key
from uapi_gateway.forwarding import Allowance
from uapi_gateway.kernel.peers import Peer

_log = log.get("uapi_gateway.conversations")
# That are appended together.
MOST_EVENTS = 1024
# Watches of a connection, and of all.
MOST_WATCHES, _WATCHES_OF_ALL = 1024, 16_384
# Of a worker; it needs one.
_MOST_CONNECTIONS = 4
_LONGEST_ID, _LONGEST_PRINCIPAL = 200, 2048
_Work = Callable[[proto.LogRequest], Coroutine[Any, Any, None]]


class LogDoor:
    """Lets workers in.

    Args:
        log: what they come for.
        ends: how workers end.
        held_bytes: of requests that are not answered yet, of all workers; one agent has no more than it leaves.
    """

    def __init__(self, log: EventLog, ends: Ends, *, held_bytes: int = 256 * 2**20) -> None:
        self.log = log
        self.ends = ends
        self.room = Room(held_bytes)
        # Counted, of which one agent has no more than it leaves, too.
        self.watches = Allowance(_WATCHES_OF_ALL)
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


class Connection(FramedConnection):
    """A worker's, which holds leases as long as it lasts."""

    def __init__(self, door: LogDoor, peer: Peer) -> None:
        super().__init__(door.room, peer.agent, peer.worker_id or f"{peer.agent}, process {peer.pid}")
        self._door = door
        self._log = door.log
        self._peer = peer
        self.end = door.ends.of(peer.worker_id)
        self._holds: dict[tuple[str, str], Hold] = {}
        # What is done for requests that are not answered yet, and watches.
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._watches = 0

    def leave(self) -> None:
        """Ends, and gives back all leases. Idempotent."""
        if self.ended:
            return
        super().leave()
        for task in self._tasks.values():
            task.cancel()
        holds, self._holds = self._holds, {}
        for hold in holds.values():
            self._log.release(hold)

    def goes_on(self, request_id: int) -> bool:
        return request_id in self._tasks

    # Requests.

    def admit(self, request: proto.LogRequest) -> None:
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
                self.answer(proto.LogReply(id=request.id, ended=proto.Ended()))
            case None:
                raise HostileError("a request for nothing that is known")

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
            self.refuse(request_id, result)
            return
        reply = proto.LogReply(id=request_id)
        reply.appended.last_sequence = result.last_sequence
        reply.appended.time_ns = now_ns
        if result.known is not None:
            reply.appended.known.CopyFrom(result.known)
        self.answer(reply)

    def _release(self, request_id: int, principal: str, asked: proto.ReleaseConversation) -> None:
        hold = self._holds.get((principal, asked.conversation_id))
        if hold is None or hold.token != asked.token:
            raise _lease_lost(asked.conversation_id)
        del self._holds[principal, asked.conversation_id]
        reply = proto.LogReply(id=request_id, released=proto.Released())
        self._log.release(hold, partial(self.answer, reply))

    def _start(self, request: proto.LogRequest, work: _Work) -> None:
        task = asyncio.create_task(self._guarded(request, work))
        self._tasks[request.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(request.id, None))

    async def _guarded(self, request: proto.LogRequest, work: _Work) -> None:
        try:
            await work(request)
        except AgentError as error:
            self.refuse(request.id, error)
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("a request to the event log failed in an unforeseen way", worker=self.name)
            self.refuse(request.id, Internal("the event log failed; the gateway's log says how"))

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
            lost=self._log.lost(key, lease.messages[0][0].message_id) if lease.messages else (),
        )
        reply = proto.LogReply(id=request.id, opened=opened)
        if reply.ByteSize() > frames.LARGEST_REPLY_BYTES:
            # The store bounds all else.
            del opened.lost[:]
            reply = proto.LogReply(id=request.id, opened=opened)
        self.answer(reply)

    async def _read_events(self, request: proto.LogRequest) -> None:
        asked = request.read
        key = self._key(request.principal, asked.conversation_id)
        events, more = await self._log.read(
            key, asked.after_sequence, asked.limit, message_id=asked.message_id, backwards=asked.backwards
        )
        self.answer(_events(request.id, events, more))

    async def _watch(self, request: proto.LogRequest) -> None:
        asked = request.watch
        key = self._key(request.principal, asked.conversation_id)
        pages = self._log.pages(key, asked.after_sequence, message_id=asked.message_id, follow=True)
        if self._watches >= MOST_WATCHES or not self._door.watches.take(self._peer.agent, 1):
            raise ResourceExhausted("too many conversations are watched at this worker; watch fewer of them")
        self._watches += 1
        # It lasts; what its request holds is small.
        self.settle(request.id)
        try:
            async with aclosing(pages):
                async for page in pages:
                    self.tell(_events(request.id, page, True))
                    await self.writable()
        finally:
            self._watches -= 1
            self._door.watches.give_back(self._peer.agent, 1)
        self.tell(proto.LogReply(id=request.id, ended=proto.Ended()))

    def _stop(self, watch_id: int) -> None:
        if (task := self._tasks.get(watch_id)) is not None and not self.is_unanswered(watch_id):
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
        self.answer(reply)

    def _key(self, principal: str, conversation_id: str) -> Key:
        """Of its own agent's conversations, whatever it says."""
        if not 0 < len(principal) <= _LONGEST_PRINCIPAL:
            raise InvalidArgument("a request to the event log names no principal")
        _check_id(conversation_id, "conversation_id")
        return Key(principal, self._peer.agent, conversation_id)

    # What it holds.

    def wanted(self, key: Key) -> None:
        self.tell(proto.LogReply(wanted=_named(key)))

    def cancelled(self, key: Key, message_id: str) -> None:
        self.tell(proto.LogReply(cancelled=proto.MessageKey(conversation=_named(key), message_id=message_id)))

    def lost(self, key: Key) -> None:
        self._holds.pop((key.principal, key.conversation_id), None)
        self.tell(proto.LogReply(lost=_named(key)))


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
