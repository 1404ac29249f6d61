"""A worker's end of the event log: requests over the socket `l` and answers, whatever becomes of the connection.

It knows nothing of conversations; `mailbox.py` does. Requests that are made in one turn of the event loop go out in
one frame.
"""

import asyncio
import itertools
import struct
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from typing import Protocol

from agentruntime import errors, log, status
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import event_log_pb2 as wire

_LENGTH = struct.Struct(">I")
# Of a frame: a message of 4 MiB fits with all around it; larger bunches are sent as several frames.
_LONGEST_FRAME_BYTES = 16 * 2**20
_FULL_FRAME_BYTES, _FULL_FRAME_REQUESTS = 2**20, 1024
# Between tries to connect, at first and at most.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 1.0
# For what is only read: how long it waits for a log that is away.
_PATIENCE_S = 15.0
# Events that a caller has not read yet, until its watch is put off.
_MOST_UNREAD = 512
# https://grpc.io/docs/guides/status-codes
_UNAVAILABLE = 14
# Gets the answer, or None if the connection was lost before one came.
Done = Callable[[wire.LogReply | None], None]
_log = log.get("agent_worker.conversations")


class Listener(Protocol):
    """Who is told what nobody asked for."""

    def connected(self) -> None: ...

    def disconnected(self) -> None: ...

    def told(self, reply: wire.LogReply) -> None: ...


class LogClient:
    """Of one worker.

    Args:
        path: of the socket; "" where there is none, because the worker was not started by a platform.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.listener: Listener | None = None
        self._ids = itertools.count(1)
        self._waiting: dict[int, Done] = {}
        # Those of them that get more than one answer.
        self._streams: set[int] = set()
        self._lasting: set[_Watch] = set()
        self._unsent: list[wire.LogRequest] = []
        self._connection: _Connection | None = None
        self._connects: asyncio.Task[None] | None = None
        self._there = asyncio.Event()

    def check(self) -> None:
        """Returns if there can be a log; it connects then, if it has not.

        Raises:
            Unavailable: this worker has none.
        """
        if not self._path:
            raise errors.Unavailable(
                "conversations are kept by a platform, and this worker belongs to none; "
                "start one with `agent up` and the agent with `agent run`",
                reason="NO_EVENT_LOG",
            )
        if self._connects is None:
            self._connects = asyncio.create_task(self._stay_connected())

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    def close(self) -> None:
        """Ends the connection, and with it every lease."""
        if self._connects is not None:
            self._connects.cancel()
        if self._connection is not None:
            self._connection.close()

    def end_watches(self, error: errors.AgentError) -> None:
        """Ends those that last, with an error by which they are begun again elsewhere."""
        for stream in self._lasting:
            stream.end(error)

    def request(self, request: wire.LogRequest, done: Done) -> int:
        """Sends a request at the end of this turn of the event loop; its id. `done` is never called within this."""
        number = next(self._ids)
        if self._connection is None:
            asyncio.get_running_loop().call_soon(done, None)
            return number
        request.id = number
        self._waiting[number] = done
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._send)
        self._unsent.append(request)
        return number

    async def ask(self, request: wire.LogRequest) -> wire.LogReply:
        """The answer to what may be asked twice: after a lost connection it is.

        Raises:
            Unavailable: the log is away for long.
            AgentError: what the log says.
        """
        loop = asyncio.get_running_loop()
        while True:
            await self._until_connected()
            answered: asyncio.Future[wire.LogReply | None] = loop.create_future()
            again = wire.LogRequest()
            again.CopyFrom(request)
            number = self.request(again, lambda reply, answered=answered: _resolve(answered, reply))  # type: ignore[misc]  # a default of a lambda has no type
            try:
                reply = await answered
            finally:
                self._waiting.pop(number, None)
            if reply is not None:
                if reply.HasField("error"):
                    raise error_of(reply.error)
                return reply

    async def read(
        self, principal: str, conversation_id: str, *, after: int, message_id: str
    ) -> AsyncGenerator[proto.Event, None]:
        """Events after a sequence number, as many as there are; of one message if it is named. Raises as `watch`."""
        more = True
        while more:
            asked = wire.ReadEvents(conversation_id=conversation_id, after_sequence=after, message_id=message_id)
            page = (await self.ask(wire.LogRequest(read=asked, principal=principal))).events
            for event in page.events:
                after = event.sequence
                yield event
            more = page.more

    async def watch(
        self, principal: str, conversation_id: str, *, after: int, message_id: str, lasting: bool = False
    ) -> AsyncGenerator[proto.Event, None]:
        """Events after a sequence number and those to come, without a gap; of a message, until it has ended.

        Args:
            principal: whose.
            conversation_id: its id.
            after: the number; 0 for all.
            message_id: "" for all.
            lasting: it is only looked at, for however long: `end_watches` ends it.

        Raises:
            AgentError: what the log says, as ConversationNotFound; Unavailable if it is away for long.
        """
        while True:
            await self._until_connected()
            stream = _Watch()
            if lasting:
                self._lasting.add(stream)
            read = wire.ReadEvents(conversation_id=conversation_id, after_sequence=after, message_id=message_id)
            number = self.request(wire.LogRequest(watch=read, principal=principal), stream.hear)
            self._streams.add(number)
            try:
                async for event in stream.events():
                    after = event.sequence
                    yield event
            finally:
                self._lasting.discard(stream)
                self._streams.discard(number)
                if self._waiting.pop(number, None) is not None and self._connection is not None:
                    # Nobody hears what is said to this id any more.
                    self.request(wire.LogRequest(stop=number), _ignore)
            if stream.ended:
                return
            if stream.failed:
                await asyncio.sleep(_LONGEST_PAUSE_S / 4)

    async def _until_connected(self) -> None:
        self.check()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._there.wait()
        except TimeoutError:
            raise errors.StoreUnavailable("the event log cannot be reached now; try again later") from None

    async def _stay_connected(self) -> None:
        pause_s = _FIRST_PAUSE_S
        loop = asyncio.get_running_loop()
        while True:
            try:
                _, connection = await loop.create_unix_connection(lambda: _Connection(self._hear), self._path)
            except OSError as error:
                _log.debug("the event log cannot be reached", error=str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            pause_s = _FIRST_PAUSE_S
            self._connection = connection
            self._there.set()
            if self.listener:
                self.listener.connected()
            await connection.ended
            self._lose()
            await asyncio.sleep(_FIRST_PAUSE_S)

    def _lose(self) -> None:
        self._connection = None
        self._there.clear()
        self._unsent.clear()
        waiting, self._waiting = self._waiting, {}
        if self.listener:
            self.listener.disconnected()
        for done in waiting.values():
            done(None)

    def _send(self) -> None:
        requests, self._unsent = self._unsent, []
        if self._connection is None:
            return  # all of them were told
        bunch, size_bytes = [], 0
        for request in requests:
            bunch.append(request)
            size_bytes += request.ByteSize()
            if size_bytes >= _FULL_FRAME_BYTES or len(bunch) >= _FULL_FRAME_REQUESTS:
                self._connection.send(bunch)
                bunch, size_bytes = [], 0
        if bunch:
            self._connection.send(bunch)

    def _hear(self, replies: wire.LogReplies) -> None:
        for reply in replies.replies:
            number = reply.id
            if not number:
                if self.listener:
                    self.listener.told(reply)
                continue
            done = self._waiting.get(number)
            if done is None:
                continue  # of a watch that was stopped
            if number not in self._streams or reply.WhichOneof("result") != "events":
                del self._waiting[number]
            done(reply)


class _Connection(asyncio.Protocol):
    """Frames over one connection."""

    def __init__(self, hear: Callable[[wire.LogReplies], None]) -> None:
        self._hear = hear
        self._received = bytearray()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        start = 0
        while len(received) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(received, start)
            if length > _LONGEST_FRAME_BYTES:
                _log.error("the event log sent a frame that is too long", bytes=length)
                self._transport.abort()
                return
            end = start + _LENGTH.size + length
            if len(received) < end:
                break
            replies = wire.LogReplies.FromString(bytes(memoryview(received)[start + _LENGTH.size : end]))
            start = end
            self._hear(replies)
        if start:
            del received[:start]

    def send(self, requests: list[wire.LogRequest]) -> None:
        body = wire.LogRequests(requests=requests).SerializeToString()
        self._transport.write(_LENGTH.pack(len(body)) + body)

    def close(self) -> None:
        self._transport.close()


class _Watch:
    """What comes of one watch, as fast as it is read."""

    def __init__(self) -> None:
        self._unread: deque[proto.Event] = deque()
        self._news = asyncio.Event()
        self._over = False
        self._error: errors.AgentError | None = None
        # With its message, not with its connection.
        self.ended = False
        # For now: the log, or what it keeps events in, is away.
        self.failed = False

    def hear(self, reply: wire.LogReply | None) -> None:
        if self._over:
            return
        kind = reply.WhichOneof("result") if reply is not None else None
        if reply is not None and kind == "events":
            self._unread.extend(reply.events.events)
            # A caller that reads slowly: what it has is kept, the rest is asked for anew when that is read.
            self._over = len(self._unread) > _MOST_UNREAD
        else:
            self._over = True
            self.ended = kind == "ended"
            self.failed = reply is None or is_away(reply.error)
            if reply is not None and kind == "error" and not self.failed:
                self._error = error_of(reply.error)
        self._news.set()

    def end(self, error: errors.AgentError) -> None:
        self._over = True
        self._error = error
        self._news.set()

    async def events(self) -> AsyncIterator[proto.Event]:
        """Those that came, until no more do."""
        while True:
            while self._unread:
                yield self._unread.popleft()
            if self._error is not None:
                raise self._error
            if self._over:
                return
            self._news.clear()
            await self._news.wait()


def error_of(error: wire.LogError) -> errors.AgentError:
    return status.rebuilt(error.code, error.message, error.reason, {})


def is_away(error: wire.LogError) -> bool:
    """Whether it says only that the log's store cannot be reached: what was asked for may be asked for again."""
    return error.code == _UNAVAILABLE


def _resolve(answered: "asyncio.Future[wire.LogReply | None]", reply: wire.LogReply | None) -> None:
    with suppress(asyncio.InvalidStateError):  # whoever asked has gone
        answered.set_result(reply)


def _ignore(_reply: wire.LogReply | None) -> None:
    """The answer to a stop says nothing."""
