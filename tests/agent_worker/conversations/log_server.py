"""A stand-in of the gateway's event log: its frames, its rules in memory, and ways for it to fail."""

import asyncio
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import event_log_pb2 as wire

_LENGTH = struct.Struct(">I")
ENDED = (proto.MESSAGE_STATUS_COMPLETED, proto.MESSAGE_STATUS_FAILED, proto.MESSAGE_STATUS_CANCELLED)
Key = tuple[str, str]


@dataclass
class Kept:
    """One conversation."""

    events: list[proto.Event] = field(default_factory=list)
    messages: dict[str, proto.MessageInfo] = field(default_factory=dict)
    said: dict[str, proto.ChatMessage] = field(default_factory=dict)
    state: bytes = b""
    version: int = 0
    token: int = 0
    holder: "Connection | None" = None


class LogServer:
    """Of one agent. What is in `kept` is on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: dict[Key, Kept] = {}
        self.connections: set[Connection] = set()
        self.counts: Counter[str] = Counter()
        self.tokens = 0
        # The store cannot be reached.
        self.away = False
        # The next append is written, and the connection lost before it is answered.
        self.cut_after_append = False
        # Why the next append that has a chunk is refused.
        self.refusal: errors.AgentError | None = None
        # Why no conversation can be opened.
        self.unopenable: errors.AgentError | None = None
        # The conversation that is opened next is deleted just before.
        self.deleted_before_open = False
        # Set: nothing is answered until it is cleared.
        self.holds = asyncio.Event()
        self.holds.set()
        self.changed = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._connected, self.path)

    async def stop(self) -> None:
        """As a gateway that ends: what is on disk stays, leases are nobody's until they are taken up."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.close()
        while self.connections:
            await asyncio.sleep(0.005)
        self.path.unlink(missing_ok=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, writer)
        self.connections.add(connection)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                requests = wire.LogRequests.FromString(await reader.readexactly(length))
                self.counts["frames"] += 1
                await self.holds.wait()
                for request in requests.requests:
                    connection.handle(request)
        connection.end()
        self.connections.discard(connection)
        writer.close()

    def texts(self, key: Key) -> list[str]:
        """The kinds of a conversation's events, in order."""
        return [str(event.WhichOneof("content")) for event in self.kept[key].events]

    def tell(self, key: Key, reply: wire.LogReply) -> None:
        holder = self.kept[key].holder
        assert holder is not None
        holder.send(reply)


class Connection:
    """A worker's."""

    def __init__(self, server: LogServer, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._writer = writer
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def close(self) -> None:
        self._writer.transport.abort()

    def end(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        for kept in self._server.kept.values():
            if kept.holder is self:
                kept.holder = None

    def send(self, reply: wire.LogReply) -> None:
        body = wire.LogReplies(replies=[reply]).SerializeToString()
        self._writer.write(_LENGTH.pack(len(body)) + body)

    def handle(self, request: wire.LogRequest) -> None:
        operation = str(request.WhichOneof("operation"))
        self._server.counts[operation] += 1
        if operation in ("open", "watch"):
            work = getattr(self, f"_{operation}")(request)
            self._tasks[request.id] = asyncio.create_task(work)
            return
        if operation == "stop":
            self._tasks.pop(request.stop).cancel()
            return
        try:
            if self._server.away:
                raise errors.StoreUnavailable("the database is away")
            reply = getattr(self, f"_{operation}")(request)
        except errors.AgentError as error:
            reply = _error(error)
        if reply is not None:
            reply.id = request.id
            self.send(reply)

    async def _open(self, request: wire.LogRequest) -> None:
        key = request.principal, request.open.conversation_id
        fault = errors.StoreUnavailable("the database is away") if self._server.away else self._server.unopenable
        if fault:
            reply = _error(fault)
            reply.id = request.id
            self.send(reply)
            return
        if self._server.deleted_before_open:
            self._server.deleted_before_open = False
            self._server.kept.pop(key)
        if request.open.existing and key not in self._server.kept:
            reply = _error(errors.ConversationNotFound(key[1]))
            reply.id = request.id
            self.send(reply)
            return
        kept = self._server.kept.setdefault(key, Kept())
        while kept.holder not in (None, self):
            self._server.tell(key, wire.LogReply(wanted=_key(key)))
            await asyncio.sleep(0.01)
        if not (request.open.token and request.open.token == kept.token):
            self._server.tokens += 1
            kept.token = self._server.tokens
        kept.holder = self
        opened = wire.Opened(
            token=kept.token, last_sequence=len(kept.events), state=kept.state, state_version=kept.version
        )
        for message_id, info in kept.messages.items():
            if info.status not in ENDED:
                opened.messages.add(info=info, message=kept.said[message_id])
        self.send(wire.LogReply(id=request.id, opened=opened))

    def _append(self, request: wire.LogRequest) -> wire.LogReply | None:
        append = request.append
        kept = self._server.kept.get((request.principal, append.conversation_id))
        if kept is None or kept.token != append.token or kept.holder is not self:
            raise errors.LeaseLost("another token is the latest")
        for event in append.events:
            if event.HasField("message") and (known := kept.messages.get(event.message_id)):
                return wire.LogReply(appended=wire.Appended(last_sequence=len(kept.events), known=known))
        if append.HasField("expected_state_version") and append.expected_state_version != kept.version:
            raise errors.StateConflict(f"the state has version {kept.version}")
        if self._server.refusal and any(event.HasField("chunk") for event in append.events):
            refusal, self._server.refusal = self._server.refusal, None
            raise refusal
        now_ns = time.time_ns()
        for event in append.events:
            event.sequence, event.token = len(kept.events) + 1, append.token
            event.time.FromNanoseconds(now_ns)
            kept.events.append(event)
            self._note(kept, event, append)
        self._server.changed.set()
        if self._server.cut_after_append:
            self._server.cut_after_append = False
            self.close()
            return None
        return wire.LogReply(appended=wire.Appended(last_sequence=len(kept.events), time_ns=now_ns))

    def _note(self, kept: Kept, event: proto.Event, append: wire.AppendEvents) -> None:
        kind = event.WhichOneof("content")
        info = kept.messages.get(event.message_id)
        if kind == "message":
            kept.said[event.message_id] = event.message
            kept.messages[event.message_id] = proto.MessageInfo(
                message_id=event.message_id, status=proto.MESSAGE_STATUS_PENDING, first_sequence=event.sequence
            )
        elif kind == "attempt" and info:
            info.status, info.attempts = proto.MESSAGE_STATUS_RUNNING, event.attempt.number
        elif kind == "interruption" and info:
            info.status, info.attempts = proto.MESSAGE_STATUS_PENDING, info.attempts - 1
        elif kind in ("completion", "failure") and info:
            assert info.status not in ENDED, "a message ends once"
            cancelled = event.failure.code == status.CODES[errors.Cancelled].value[0]
            failed = proto.MESSAGE_STATUS_CANCELLED if cancelled else proto.MESSAGE_STATUS_FAILED
            info.status = proto.MESSAGE_STATUS_COMPLETED if kind == "completion" else failed
            info.last_sequence = event.sequence
        elif kind == "state":
            kept.state, kept.version = append.state, event.state.version

    def _release(self, request: wire.LogRequest) -> wire.LogReply:
        kept = self._server.kept.get((request.principal, request.release.conversation_id))
        if kept is None or kept.token != request.release.token or kept.holder is not self:
            raise errors.LeaseLost("another token is the latest")
        kept.holder = None
        return wire.LogReply(released=wire.Released())

    def _found(self, principal: str, conversation_id: str) -> Kept:
        kept = self._server.kept.get((principal, conversation_id))
        if kept is None:
            raise errors.ConversationNotFound(conversation_id)
        return kept

    def _read(self, request: wire.LogRequest) -> wire.LogReply:
        read = request.read
        events = self._found(request.principal, read.conversation_id).events
        if read.backwards:
            chosen = [
                each for each in reversed(events) if not read.after_sequence or each.sequence < read.after_sequence
            ]
        else:
            chosen = [each for each in events if each.sequence > read.after_sequence]
        if read.message_id:
            chosen = [each for each in chosen if each.message_id == read.message_id]
        limit = read.limit or 3
        return wire.LogReply(events=wire.Events(events=chosen[:limit], more=len(chosen) > limit))

    async def _watch(self, request: wire.LogRequest) -> None:
        watch, after = request.watch, request.watch.after_sequence
        while True:
            try:
                kept = self._found(request.principal, watch.conversation_id)
            except errors.AgentError as error:
                reply = _error(error)
                reply.id = request.id
                self.send(reply)
                return
            chosen = [each for each in kept.events if each.sequence > after]
            for event in chosen:
                after = event.sequence
                if not watch.message_id or event.message_id == watch.message_id:
                    self.send(wire.LogReply(id=request.id, events=wire.Events(events=[event])))
            info = kept.messages.get(watch.message_id)
            if info and info.status in ENDED:
                self.send(wire.LogReply(id=request.id, ended=wire.Ended()))
                return
            self._server.changed.clear()
            await self._server.changed.wait()

    def _get(self, request: wire.LogRequest) -> wire.LogReply:
        asked = request.get
        kept = self._found(request.principal, asked.conversation_id)
        messages = [
            info
            for message_id, info in kept.messages.items()
            if (message_id == asked.message_id if asked.message_id else info.status not in ENDED)
        ]
        conversation = proto.Conversation(
            conversation_id=asked.conversation_id, last_sequence=len(kept.events), messages=messages
        )
        return wire.LogReply(get=proto.GetConversationResponse(conversation=conversation))

    def _list(self, request: wire.LogRequest) -> wire.LogReply:
        names = [name for principal, name in self._server.kept if principal == request.principal]
        found = [proto.Conversation(conversation_id=name) for name in names]
        return wire.LogReply(list=proto.ListConversationsResponse(conversations=found))

    def _cancel(self, request: wire.LogRequest) -> wire.LogReply:
        kept = self._found(request.principal, request.cancel.conversation_id)
        info = kept.messages.get(request.cancel.message_id)
        if info is None:
            raise errors.MessageNotFound(f"message '{request.cancel.message_id}' not found")
        return wire.LogReply(cancel=proto.CancelMessageResponse(status=info.status))

    def _delete(self, request: wire.LogRequest) -> wire.LogReply:
        key = request.principal, request.delete.conversation_id
        kept = self._found(*key)
        if kept.holder:
            kept.holder.send(wire.LogReply(lost=_key(key)))
        del self._server.kept[key]
        return wire.LogReply(delete=proto.DeleteConversationResponse())


def _key(key: Key) -> wire.ConversationKey:
    return wire.ConversationKey(principal=key[0], conversation_id=key[1])


def _error(error: errors.AgentError) -> wire.LogReply:
    code: int = status.code_of(error).value[0]
    return wire.LogReply(error=wire.LogError(code=code, reason=error.reason, message=error.message))


@asynccontextmanager
async def log_server(path: Path) -> AsyncIterator[Any]:
    server = LogServer(path)
    await server.listen()
    try:
        yield server
    finally:
        server.holds.set()
        await server.stop()
