"""Conversations with agents, as a caller of `AsyncClient` has them."""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from typing import Any

from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import conversation_service_pb2_grpc
from agentruntime.client import handshake, messages, policy
from agentruntime.client.connection_aio import Connection
from agentruntime.client.messages import Asked
from agentruntime.client.resumption import Resumption, Until
from agentruntime.conversation import ActorId, ChatMessage, RequestStatus

# For a look at a connection: it is there or it is not.
_LOOK_S = 0.3


class AsyncConversation:
    """`Conversation` for asyncio: the same arguments, names and errors."""

    def __init__(self, connection: Connection, agent: str, conversation_id: str | None) -> None:
        self.id = messages.new_id() if conversation_id is None else messages.check_id(conversation_id)
        self.actor = ActorId(agent, self.id)
        self._connection = connection
        self._policy = policy.CallPolicy.of(connection.target, agent)
        # The generated stubs' asynchronous forms exist for type checkers only, hence the names in quotes.
        self._stub: conversation_service_pb2_grpc.ConversationServiceAsyncStub = (
            conversation_service_pb2_grpc.ConversationServiceStub(connection.channel(agent))
        )
        self._metadata = ((messages.CONVERSATION_KEY, self.id),)

    async def send(
        self,
        message: str | ChatMessage,
        *,
        message_id: str | None = None,
        when_busy: messages.WhenBusy | None = None,
        timeout_s: float | None = None,
    ) -> "AsyncResponseHandle":
        """As `Conversation.send`."""
        handle = self._handle(Asked.of_message(self.id, message, message_id, when_busy), timeout_s)
        await handle.await_accepted()
        return handle

    def response(self, message_id: str, *, timeout_s: float | None = None) -> "AsyncResponseHandle":
        """As `Conversation.response`."""
        return self._handle(Asked(self.id, Until.MESSAGE, messages.check_id(message_id)), timeout_s)

    async def watch(self, after_sequence: int = 0, follow: bool = False) -> AsyncIterator[proto.Event]:
        """As `Conversation.watch`: `async for event in …`."""
        timeout_s = math.inf if follow else None
        stream = self._stream(Asked(self.id, Until.FOREVER if follow else Until.NOW), after_sequence, timeout_s)
        try:
            while (event := await stream.event()) is not None:
                yield event
        finally:
            stream.close()

    async def get(self) -> proto.Conversation:
        """As `Conversation.get`."""
        return await self._get("")

    async def delete(self) -> None:
        """As `Conversation.delete`."""
        request = proto.DeleteConversationRequest(conversation_id=self.id)
        await self._stub.DeleteConversation(request, metadata=self._metadata)

    async def _get(self, message_id: str) -> proto.Conversation:
        request = proto.GetConversationRequest(conversation_id=self.id, message_id=message_id)
        return (await self._stub.GetConversation(request, metadata=self._metadata)).conversation

    async def _cancel(self, message_id: str) -> RequestStatus:
        request = proto.CancelMessageRequest(conversation_id=self.id, message_id=message_id)
        return RequestStatus.of((await self._stub.CancelMessage(request, metadata=self._metadata)).status)

    def _handle(self, asked: Asked, timeout_s: float | None) -> "AsyncResponseHandle":
        return AsyncResponseHandle(self, asked.message_id, self._stream(asked, 0, timeout_s))

    def _stream(self, asked: Asked, after: int, timeout_s: float | None) -> "_Stream":
        resumption = Resumption(asked.until, after, self._policy.deadline_s(timeout_s), time.monotonic())
        return _Stream(self._connection, self._stub, self._metadata, asked, resumption)


class AsyncResponseHandle:
    """`ResponseHandle` for asyncio. Tasks may share it, and be cancelled over it."""

    def __init__(self, conversation: AsyncConversation, message_id: str, stream: "_Stream") -> None:
        self.message_id = message_id
        self._conversation = conversation
        self._stream = stream
        self._events: list[proto.Event] = []
        self._lock = asyncio.Lock()

    async def get_response(self) -> ChatMessage:
        """As `ResponseHandle.get_response`."""
        return messages.reply([event async for event in self.watch_updates()])

    async def watch_updates(self) -> AsyncIterator[proto.Event]:
        """As `ResponseHandle.watch_updates`: `async for event in …`."""
        position = 0
        while (event := await self._event(position)) is not None:
            yield event
            position += 1

    async def status(self) -> RequestStatus:
        """As `ResponseHandle.status`."""
        ended = messages.status_by(self._events[-1:])
        if ended is not None:
            return ended
        return messages.status_in(await self._conversation._get(self.message_id), self.message_id)

    async def cancel(self) -> RequestStatus:
        """As `ResponseHandle.cancel`."""
        return await self._conversation._cancel(self.message_id)

    async def await_accepted(self) -> None:
        """As `ResponseHandle.await_accepted`."""
        await self._event(0)

    async def _event(self, position: int) -> proto.Event | None:
        async with self._lock:
            while position >= len(self._events):
                event = await self._stream.event()
                if event is None:
                    return None
                self._events.append(event)
            return self._events[position]


class _Stream:
    """Events in order, each once, over as many calls as it takes."""

    def __init__(
        self,
        connection: Connection,
        stub: "conversation_service_pb2_grpc.ConversationServiceAsyncStub",
        metadata: tuple[tuple[str, str], ...],
        asked: Asked,
        resumption: Resumption,
    ) -> None:
        self._connection = connection
        self._stub = stub
        self._metadata = metadata
        self._asked = asked
        self._resumption = resumption
        self._call: Any = None
        self._responses: Any = None

    async def event(self) -> proto.Event | None:
        """The next one; None after the last."""
        while not self._resumption.ended:
            try:
                event = await self._read()
                if event is not None and self._resumption.heard(event):
                    return event
            except errors.AgentError as error:
                self.close()
                await self._wait(error)
            except BaseException:
                # The reader was cancelled, and the call with it.
                self.close()
                raise
        return None

    def close(self) -> None:
        if self._call is not None:
            self._call.cancel()
        self._call = None

    async def _read(self) -> proto.Event | None:
        if self._call is None:
            self._call = self._open()
            self._responses = aiter(self._call)
        response = await anext(self._responses, None)
        if response is None:
            self._call = None
            self._resumption.closed()
            return None
        event: proto.Event = response.event
        if self._resumption.ends_with(event):
            await self._finish()
        return event

    def _open(self) -> Any:
        request = self._asked.request(self._resumption)
        options = self._resumption.options(time.monotonic())
        if isinstance(request, proto.StreamMessageRequest):
            return self._stub.StreamMessage(request, metadata=self._metadata, **options)
        return self._stub.WatchConversation(request, metadata=self._metadata, **options)

    async def _finish(self) -> None:
        """Lets a call end that has handed over its last event."""
        try:
            await anext(self._responses, None)
        except errors.AgentError:
            # All that was to come is there.
            self.close()
        self._call = None

    async def _wait(self, error: errors.AgentError) -> None:
        try:
            delay_s = self._resumption.delay_s(error, time.monotonic(), random.random())  # noqa: S311 — because nobody gains by guessing it
        except errors.AgentError as final:
            if self._resumption.unconnected(final) and not await self._connection.connected(_LOOK_S):
                to, away_s = self._connection.target, self._resumption.away_s
                raise await asyncio.to_thread(handshake.not_connected, to, away_s) from error
            raise
        await asyncio.sleep(delay_s)
