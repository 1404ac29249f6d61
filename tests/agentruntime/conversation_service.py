"""A `ConversationService` in memory, whose streams break where a test says so.

An agent answers each word of a message in a chunk. Its text may begin with what shall become of it: `wait` (it runs
until `release` or a cancel), `fail`, `part` (data, a file and a link), `return` (a completion without chunks).
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import conversation_service_pb2_grpc
from agentruntime.conversation import ChatMessage, Part

_END = ("completion", "failure")
Abort = Callable[[grpc.ServicerContext, errors.AgentError], Any]


class Log:
    """What was said, by conversation."""

    def __init__(self) -> None:
        self.events: dict[str, list[proto.Event]] = defaultdict(list)
        # Of each stream to come: how many events it hands over before it breaks, and by what.
        self.breaks: list[tuple[int, errors.AgentError | None]] = []
        # Method and metadata of each call, and the methods of streams whose callers have hung up.
        self.left: list[str] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        # Repeats the event before the one that was asked for.
        self.repeats = False
        self.ignores_cancel = False
        self.changed = threading.Condition()

    def append(self, conversation_id: str, message_id: str, **content: Any) -> None:
        with self.changed:
            events = self.events[conversation_id]
            event = proto.Event(sequence=len(events) + 1, message_id=message_id, token=1, **content)
            event.time.FromSeconds(1_700_000_000 + len(events))
            events.append(event)
            self.changed.notify_all()

    def end(self, conversation_id: str, message_id: str, **content: Any) -> None:
        """Ends a message that has not ended."""
        if not any(event.WhichOneof("content") in _END for event in self.of(conversation_id, message_id)):
            self.append(conversation_id, message_id, **content)

    def release(self, conversation_id: str) -> None:
        """Lets messages end that run."""
        for message_id in self.running(conversation_id):
            self.end(conversation_id, message_id, completion=said("released"))

    def of(self, conversation_id: str, message_id: str) -> list[proto.Event]:
        return [event for event in self.events[conversation_id] if message_id in ("", event.message_id)]

    def running(self, conversation_id: str) -> list[str]:
        ids = list(dict.fromkeys(event.message_id for event in self.events[conversation_id]))
        return [each for each in ids if self.status(conversation_id, each) == proto.MESSAGE_STATUS_RUNNING]

    def status(self, conversation_id: str, message_id: str) -> "proto.MessageStatus.ValueType":
        events = self.of(conversation_id, message_id)
        match events[-1].WhichOneof("content") if events else None:
            case None:
                return proto.MESSAGE_STATUS_UNSPECIFIED
            case "completion":
                return proto.MESSAGE_STATUS_COMPLETED
            case "failure":
                cancelled = events[-1].failure.code == grpc.StatusCode.CANCELLED.value[0]
                return proto.MESSAGE_STATUS_CANCELLED if cancelled else proto.MESSAGE_STATUS_FAILED
        return proto.MESSAGE_STATUS_RUNNING

    def take(self, request: proto.StreamMessageRequest) -> None:
        """What an agent does with a message, unless it was there already."""
        conversation_id, message_id = request.conversation_id, request.message_id
        if self.of(conversation_id, message_id):
            return
        text = ChatMessage.of_proto(request.message).text
        self.append(conversation_id, message_id, message=request.message)
        self.append(conversation_id, message_id, attempt=proto.Attempt(number=1, worker_id="helper-01"))
        if text.startswith("fail"):
            failure = proto.Failure(
                code=3, reason="INVALID_ARGUMENT", message="I do not like this", metadata={"a": "b"}, traceback="at x"
            )
            self.end(conversation_id, message_id, failure=failure)
        elif text.startswith("part"):
            parts = (
                Part(data={"n": 1}),
                Part(blob=b"x" * 2000, media_type="image/png", name="a.png"),
                Part(url="http://b"),
            )
            self.end(conversation_id, message_id, completion=ChatMessage(parts, "assistant").to_proto())
        elif text.startswith("return"):
            self.end(conversation_id, message_id, completion=said(text))
        else:
            words = text.split(" ")
            for word in words:
                self.append(conversation_id, message_id, chunk=proto.Part(text=word.upper() + " "))
            if words[0] != "wait":
                self.end(conversation_id, message_id, completion=said(text.upper() + " "))


def said(text: str) -> proto.ChatMessage:
    return ChatMessage.of(text, "assistant").to_proto()


class Conversations(conversation_service_pb2_grpc.ConversationServiceServicer):
    def __init__(self, log: Log, add: Callable[[Any, Any], None], abort: Abort) -> None:
        self._log = log
        self._add = add
        self._abort = abort

    def SendMessage(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def StreamMessage(self, request: Any, context: Any) -> Iterator[Any]:
        self._begin(request, context)
        limit, error = self._next_break()
        if limit == 0 and error is not None:
            self._abort(context, error)
        self._log.take(request)
        for event in self._following(context, request.conversation_id, request.message_id, 0, (limit, error)):
            yield proto.StreamMessageResponse(conversation_id=request.conversation_id, event=event)

    def WatchConversation(self, request: Any, context: Any) -> Iterator[Any]:
        self._begin(request, context)
        self._known(request, context)
        breaks = self._next_break()
        after = request.after_sequence - self._log.repeats if request.after_sequence else 0
        if request.follow:
            events = self._following(context, request.conversation_id, request.message_id, after, breaks)
        else:
            kept = self._log.of(request.conversation_id, request.message_id)
            events = iter([event for event in kept if event.sequence > after])
        for event in events:
            yield proto.WatchConversationResponse(event=event)

    def CancelMessage(self, request: Any, context: Any) -> Any:
        self._begin(request, context)
        self._known(request, context)
        was = self._log.status(request.conversation_id, request.message_id)
        failure = proto.Failure(code=1, reason="CANCELLED", message="the message was cancelled")
        if not self._log.ignores_cancel:
            self._log.end(request.conversation_id, request.message_id, failure=failure)
        return proto.CancelMessageResponse(status=was)

    def GetConversation(self, request: Any, context: Any) -> Any:
        self._begin(request, context)
        self._known(request, context)
        conversation = self._conversation(request.conversation_id)
        ids = [request.message_id] if request.message_id else self._log.running(request.conversation_id)
        for message_id in ids:
            if status := self._log.status(request.conversation_id, message_id):
                conversation.messages.add(message_id=message_id, status=status)
        return proto.GetConversationResponse(conversation=conversation)

    def ListConversations(self, request: Any, context: Any) -> Any:
        self._begin(request, context)
        ids = sorted(self._log.events)
        at = int(request.page_token or 0)
        token = str(at + 2) if at + 2 < len(ids) else ""
        page = [self._conversation(each) for each in ids[at : at + 2]]
        return proto.ListConversationsResponse(conversations=page, next_page_token=token)

    def DeleteConversation(self, request: Any, context: Any) -> Any:
        self._begin(request, context)
        self._known(request, context)
        del self._log.events[request.conversation_id]
        return proto.DeleteConversationResponse()

    def _begin(self, request: Any, context: Any) -> None:
        self._log.calls.append((type(request).__name__.removesuffix("Request"), dict(context.invocation_metadata())))
        self._add(request, context)

    def _known(self, request: Any, context: Any) -> None:
        if request.conversation_id not in self._log.events:
            self._abort(context, errors.ConversationNotFound(request.conversation_id))

    def _conversation(self, conversation_id: str) -> proto.Conversation:
        events = self._log.events[conversation_id]
        made = proto.Conversation(
            conversation_id=conversation_id,
            agent="helper",
            principal="local",
            first_sequence=1,
            last_sequence=len(events),
            bytes=1234,
        )
        made.changed_at.FromSeconds(1_700_000_000)
        return made

    def _next_break(self) -> tuple[int, errors.AgentError | None]:
        return self._log.breaks.pop(0) if self._log.breaks else (-1, None)

    def _following(
        self, context: Any, conversation_id: str, message_id: str, after: int, breaks: tuple[int, Any]
    ) -> Iterator[proto.Event]:
        limit, error = breaks
        context.add_callback(self._wake)
        given, stays = 0, False
        try:
            while given != limit:
                with self._log.changed:
                    while context.is_active() and self._next(conversation_id, message_id, after) is None:
                        self._log.changed.wait()
                    event = self._next(conversation_id, message_id, after)
                if not context.is_active() or event is None:
                    return
                yield event
                given += 1
                after = event.sequence
                if message_id and event.WhichOneof("content") in _END:
                    stays = True
                    return
            stays = True
        finally:
            # Also where the server asks for no more, for the caller has left meanwhile.
            if not stays:
                self._log.left.append("StreamMessage" if message_id else "WatchConversation")
        if error is not None:
            self._abort(context, error)

    def _next(self, conversation_id: str, message_id: str, after: int) -> proto.Event | None:
        kept = self._log.of(conversation_id, message_id)
        return next((event for event in kept if event.sequence > after), None)

    def _wake(self) -> None:
        with self._log.changed:
            self._log.changed.notify_all()
