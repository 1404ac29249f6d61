"""Conversations with agents, as a caller of `Client` has them."""

import math
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import conversation_service_pb2_grpc
from agentruntime.client import handshake, messages, policy
from agentruntime.client.connection import Connection
from agentruntime.client.messages import Asked
from agentruntime.client.resumption import Resumption, Until
from agentruntime.conversation import ActorId, ChatMessage, RequestStatus

# For a look at a connection: it is there or it is not.
_LOOK_S = 0.3


class Conversation:
    """A conversation of this caller with an agent. It may be new; nothing is sent before the first message is.

    Made by `Client.conversation`. Threads may share it. Whoever may call the agent may have conversations with it;
    two callers that choose one id have two conversations.

    Raises:
        InvalidArgument: the agent's name or the id cannot be one.
    """

    def __init__(self, connection: Connection, agent: str, conversation_id: str | None) -> None:
        # Of 1 to 200 printable ASCII characters; made here if none was given.
        self.id = messages.new_id() if conversation_id is None else messages.check_id(conversation_id)
        self.actor = ActorId(agent, self.id)
        self._connection = connection
        self._policy = policy.CallPolicy.of(connection.target, agent)
        self._stub = conversation_service_pb2_grpc.ConversationServiceStub(connection.channel(agent))
        # It takes every call to the worker that has the conversation at hand.
        self._metadata = ((messages.CONVERSATION_KEY, self.id),)

    def send(
        self,
        message: str | ChatMessage,
        *,
        message_id: str | None = None,
        when_busy: messages.WhenBusy | None = None,
        timeout_s: float | None = None,
    ) -> "ResponseHandle":
        """Sends a message; returns once it is on disk, so that it will be handled whoever dies.

        Args:
            message: a text, or a message of several parts.
            message_id: by which repeating it is safe: a message is handled once, however often it is sent. One like
                the conversation's; made up if None.
            when_busy: "queue", "reject" or "interrupt", whatever the agent says of a message that comes while another
                one is handled.
            timeout_s: seconds until the reply must be there; the client's if None, `math.inf` for no end.

        Raises:
            InvalidArgument: the message or an id cannot be one.
            NoConversations: the agent has no `on_message`.
            ConversationBusy: another one is handled, and this one is not to wait.
            TooManyMessages, QueueFull: as many wait as may, in the conversation or at the worker.
            MessageTooLarge, ConversationFull: it is more than there may be.
            AgentError: it could not be sent, as any other call.
        """
        handle = self._handle(Asked.of_message(self.id, message, message_id, when_busy), timeout_s)
        handle.await_accepted()
        return handle

    def response(self, message_id: str, *, timeout_s: float | None = None) -> "ResponseHandle":
        """The handle of a message that was sent before, by any process of this caller, as if it were sent now.

        Nothing is asked yet: whether there is such a message, the handle's methods say.

        Args:
            message_id: of the message.
            timeout_s: as of `send`, from now on.

        Raises:
            InvalidArgument: the id cannot be one.
        """
        return self._handle(Asked(self.id, Until.MESSAGE, messages.check_id(message_id)), timeout_s)

    def watch(self, after_sequence: int = 0, follow: bool = False) -> Iterator[proto.Event]:
        """The events after a sequence number, in order, each once; with `follow` also those to come, without an end.

        It goes on by itself after a break. With `follow` it is a call in flight, and keeps the agent awake.

        Args:
            after_sequence: the first event is the one after it; 0 for all.
            follow: whether to wait for more; else it has the client's time.

        Raises:
            ConversationNotFound: there is none, or no more.
            EventsExpired: the first of them is not kept any more; `get` says which is.
            AgentError: the platform was away for more than a minute.
        """
        timeout_s = math.inf if follow else None
        stream = self._stream(Asked(self.id, Until.FOREVER if follow else Until.NOW), after_sequence, timeout_s)
        try:
            while (event := stream.event()) is not None:
                yield event
        finally:
            stream.close()

    def get(self) -> proto.Conversation:
        """What there is of it, with its messages that have not ended; nothing of what was said.

        Raises:
            ConversationNotFound: there is none.
        """
        return self._get("")

    def delete(self) -> None:
        """Deletes it with all its events and its state, for good; what runs in it is cancelled first.

        Its id may begin another one.

        Raises:
            ConversationNotFound: there is none.
        """
        request = proto.DeleteConversationRequest(conversation_id=self.id)
        self._stub.DeleteConversation(request, metadata=self._metadata)

    def _get(self, message_id: str) -> proto.Conversation:
        request = proto.GetConversationRequest(conversation_id=self.id, message_id=message_id)
        return self._stub.GetConversation(request, metadata=self._metadata).conversation

    def _cancel(self, message_id: str) -> RequestStatus:
        request = proto.CancelMessageRequest(conversation_id=self.id, message_id=message_id)
        return RequestStatus.of(self._stub.CancelMessage(request, metadata=self._metadata).status)

    def _handle(self, asked: Asked, timeout_s: float | None) -> "ResponseHandle":
        return ResponseHandle(self, asked.message_id, self._stream(asked, 0, timeout_s))

    def _stream(self, asked: Asked, after: int, timeout_s: float | None) -> "_Stream":
        resumption = Resumption(asked.until, after, self._policy.deadline_s(timeout_s), time.monotonic())
        return _Stream(self._connection, self._stub, self._metadata, asked, resumption)


class ResponseHandle:
    """What comes of a message. Threads may share it. Made by `Conversation.send` and `Conversation.response`.

    It outlives the agent's worker and the gateway: what was heard is kept, and the rest is asked for after it. If one
    of its methods fails because the platform was away for too long, it may be called again.
    """

    def __init__(self, conversation: Conversation, message_id: str, stream: "_Stream") -> None:
        self.message_id = message_id
        self._conversation = conversation
        self._stream = stream
        self._events: list[proto.Event] = []
        self._lock = threading.Lock()

    def get_response(self) -> ChatMessage:
        """Waits for the reply.

        Raises:
            Cancelled: the message was cancelled, or interrupted by a later one.
            MessageNotFound: there is none of that id.
            MessageAmbiguous: the worker was lost, and the agent's messages are not to be handled twice.
            MessageSetAside: it ended three workers.
            DeadlineExceeded: it is not there in time; the message goes on.
            AgentError: whatever else the agent failed with.
        """
        return messages.reply(self.watch_updates())

    def watch_updates(self) -> Iterator[proto.Event]:
        """The message's events from its own on, in order, each once to every caller; the last one is its
        completion, or its failure.

        Raises:
            DeadlineExceeded: it has not ended in time; the message goes on.
            AgentError: the platform was away for too long, or the conversation was deleted.
        """
        position = 0
        while (event := self._event(position)) is not None:
            yield event
            position += 1

    def status(self) -> RequestStatus:
        """What has become of the message by now.

        Raises:
            ConversationNotFound: there is none, or no more.
            AgentError: it could not be asked.
        """
        ended = messages.status_by(self._events[-1:])
        if ended is not None:
            return ended
        return messages.status_in(self._conversation._get(self.message_id), self.message_id)

    def cancel(self) -> RequestStatus:
        """Asks for the message's end; it may take its handler a moment, and `get_response` raises `Cancelled` then.

        Returns:
            What had become of the message by then; one that has ended stays as it is.

        Raises:
            ConversationNotFound, MessageNotFound: there is none, or no more.
            AgentError: it could not be asked.
        """
        return self._conversation._cancel(self.message_id)

    def await_accepted(self) -> None:
        """Waits until the message is on disk; raises as `Conversation.send`."""
        self._event(0)

    def _event(self, position: int) -> proto.Event | None:
        with self._lock:
            while position >= len(self._events):
                event = self._stream.event()
                if event is None:
                    return None
                self._events.append(event)
            return self._events[position]


class _Stream:
    """Events in order, each once, over as many calls as it takes."""

    def __init__(
        self,
        connection: Connection,
        stub: conversation_service_pb2_grpc.ConversationServiceStub,
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

    def event(self) -> proto.Event | None:
        """The next one; None after the last."""
        while not self._resumption.ended:
            try:
                event = self._read()
                if event is not None and self._resumption.heard(event):
                    return event
            except errors.AgentError as error:
                self.close()
                self._wait(error)
            except BaseException:
                # Interrupted: what the call was about to hand over, it does not say.
                self.close()
                raise
        return None

    def close(self) -> None:
        if self._call is not None:
            self._call.cancel()
        self._call = None

    def _read(self) -> proto.Event | None:
        if self._call is None:
            self._call = self._open()
        response = next(self._call, None)
        if response is None:
            self._call = None
            self._resumption.closed()
            return None
        event: proto.Event = response.event
        if self._resumption.ends_with(event):
            self._finish()
        return event

    def _open(self) -> Any:
        request = self._asked.request(self._resumption)
        options = self._resumption.options(time.monotonic())
        if isinstance(request, proto.StreamMessageRequest):
            return self._stub.StreamMessage(request, metadata=self._metadata, **options)
        return self._stub.WatchConversation(request, metadata=self._metadata, **options)

    def _finish(self) -> None:
        """Lets a call end that has handed over its last event."""
        try:
            next(self._call, None)
        except errors.AgentError:
            # All that was to come is there.
            self.close()
        self._call = None

    def _wait(self, error: errors.AgentError) -> None:
        try:
            delay_s = self._resumption.delay_s(error, time.monotonic(), random.random())  # noqa: S311 — because nobody gains by guessing it
        except errors.AgentError as final:
            if self._resumption.unconnected(final) and not self._connection.connected(_LOOK_S, wait=False):
                raise handshake.not_connected(self._connection.target, self._resumption.away_s) from error
            raise
        time.sleep(delay_s)
