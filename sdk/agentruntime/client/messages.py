"""What callers send to conversations, and what comes of it, for both clients. No I/O in here."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.client.resumption import Resumption, Until
from agentruntime.conversation import ChatMessage, RequestStatus

CONVERSATION_KEY = "x-uapi-conversation"
# As conversation_service.proto has it.
_LONGEST_ID = 200
WhenBusy = Literal["queue", "reject", "interrupt"]
_WHEN_BUSY: "dict[str, proto.WhenBusy.ValueType]" = {
    "queue": proto.WHEN_BUSY_QUEUE,
    "reject": proto.WHEN_BUSY_REJECT,
    "interrupt": proto.WHEN_BUSY_INTERRUPT,
}


def new_id() -> str:
    """An id that nobody has chosen yet, of a conversation or a message."""
    return uuid.uuid4().hex


def check_id(given: str) -> str:
    """The id, if it can be one of a conversation or a message.

    Raises:
        InvalidArgument: it cannot.
    """
    if not (0 < len(given) <= _LONGEST_ID and given.isascii() and given.isprintable()):
        raise errors.InvalidArgument(
            f"'{given[:_LONGEST_ID]}' is no id of a conversation or a message; use 1 to {_LONGEST_ID} printable "
            "characters of ASCII",
            reason="INVALID_ID",
        )
    return given


@dataclass(frozen=True)
class Asked:
    """What a stream is to bring: the events of a conversation, or of one message in it."""

    conversation_id: str
    until: Until
    # Only of this one.
    message_id: str = ""
    # What begins it; unset where nothing is sent.
    sends: proto.StreamMessageRequest | None = None

    @classmethod
    def of_message(
        cls,
        conversation_id: str,
        content: "str | ChatMessage",
        message_id: str | None,
        when_busy: WhenBusy | None,
    ) -> "Asked":
        """All that comes of a message to be sent.

        Raises:
            InvalidArgument: the message or an id cannot be one.
        """
        message = ChatMessage.of(content)
        if when_busy is not None and when_busy not in _WHEN_BUSY:
            raise errors.InvalidArgument(f"when_busy is queue, reject or interrupt, not '{when_busy}'")
        request = proto.StreamMessageRequest(
            conversation_id=conversation_id,
            message_id=check_id(message_id or message.message_id or new_id()),
            message=message.to_proto(),
            when_busy=_WHEN_BUSY[when_busy] if when_busy else proto.WHEN_BUSY_UNSPECIFIED,
        )
        return cls(conversation_id, Until.MESSAGE, request.message_id, request)

    def request(self, at: Resumption) -> proto.StreamMessageRequest | proto.WatchConversationRequest:
        """That of the next call: the message again, by the same id, until something was heard of it."""
        if self.sends is not None and not at.sequence:
            return self.sends
        return proto.WatchConversationRequest(
            conversation_id=self.conversation_id,
            after_sequence=at.sequence,
            follow=self.until is not Until.NOW,
            message_id=self.message_id,
        )


def reply(events: Iterable[proto.Event]) -> ChatMessage:
    """What the agent replied, by the events of a message that has ended.

    Raises:
        AgentError: what it failed with; operators find the agent's own traceback under `traceback` in its metadata.
    """
    *_, end = events
    if end.WhichOneof("content") == "completion":
        return ChatMessage.of_proto(end.completion, end.message_id)
    raise failure(end.failure)


def failure(of: proto.Failure) -> errors.AgentError:
    """The error that a message failed with."""
    metadata = dict(of.metadata)
    if of.traceback:
        metadata["traceback"] = of.traceback
    return status.rebuilt(of.code, of.message, of.reason, metadata)


def status_by(events: Iterable[proto.Event]) -> RequestStatus | None:
    """What has become of a message, if these of its events say so for good."""
    for event in events:
        if event.HasField("completion"):
            return RequestStatus.COMPLETED
        if event.HasField("failure"):
            cancelled = isinstance(failure(event.failure), errors.Cancelled)
            return RequestStatus.CANCELLED if cancelled else RequestStatus.FAILED
    return None


def status_in(conversation: proto.Conversation, message_id: str) -> RequestStatus:
    """What has become of a message, by what the platform says of its conversation."""
    for info in conversation.messages:
        if info.message_id == message_id:
            return RequestStatus.of(info.status)
    return RequestStatus.NOT_FOUND
