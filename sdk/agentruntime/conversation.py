"""What conversations are made of, as authors and callers see it: messages, their parts, and what became of them."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from google.protobuf import json_format, struct_pb2

from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto

if TYPE_CHECKING:
    from pydantic import BaseModel

    from agentruntime.model import Model

    ModelT = TypeVar("ModelT", bound=BaseModel)

# None, bool, int, float, str, and lists and dicts with str keys of them.
Json = Any


@dataclass(frozen=True, slots=True)
class ActorId:
    """Who holds a conversation."""

    # The agent.
    type_name: str
    # The conversation; its callers choose it, each for themselves.
    instance_id: str

    def __str__(self) -> str:
        return f"{self.type_name}/{self.instance_id}"


class RequestStatus(StrEnum):
    """What has become of a message."""

    # On disk; others before it run.
    PENDING = "pending"
    # Begun; also while its worker was lost and no other one has begun it again.
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    # There is no message of that id.
    NOT_FOUND = "not_found"

    @property
    def ended(self) -> bool:
        """Whether nothing more will become of it."""
        return self in (RequestStatus.COMPLETED, RequestStatus.FAILED, RequestStatus.CANCELLED)

    @classmethod
    def of(cls, status: int) -> "RequestStatus":
        """Of a `MessageStatus`."""
        return _STATUSES.get(status, cls.NOT_FOUND)


_STATUSES: dict[int, RequestStatus] = {
    proto.MESSAGE_STATUS_PENDING: RequestStatus.PENDING,
    proto.MESSAGE_STATUS_RUNNING: RequestStatus.RUNNING,
    proto.MESSAGE_STATUS_COMPLETED: RequestStatus.COMPLETED,
    proto.MESSAGE_STATUS_FAILED: RequestStatus.FAILED,
    proto.MESSAGE_STATUS_CANCELLED: RequestStatus.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a message; one of `text`, `data`, `blob` and `url`.

    A message has at most 4 MiB less 64 KiB in all.

    Raises:
        InvalidArgument: it is not one of them.
    """

    text: str | None = None
    # Any JSON but null.
    data: Json = None
    blob: bytes | None = None
    # Where it is; the platform does not fetch it.
    url: str | None = None
    # Of `blob` and `url`: "image/png".
    media_type: str = ""
    # A file's name.
    name: str = ""

    def __post_init__(self) -> None:
        if sum(each is not None for each in (self.text, self.data, self.blob, self.url)) != 1:
            raise errors.InvalidArgument("a Part is one of text, data, blob and url; give exactly one of them")

    def to_proto(self) -> proto.Part:
        """The same on the wire.

        Raises:
            InvalidArgument: `data` is not JSON.
        """
        if self.text is not None:
            return proto.Part(text=self.text, media_type=self.media_type, name=self.name)
        part = proto.Part(media_type=self.media_type, name=self.name)
        if self.blob is not None:
            part.blob = self.blob
        elif self.url is not None:
            part.url = self.url
        else:
            part.data.CopyFrom(to_value(self.data))
        return part

    @classmethod
    def of_proto(cls, part: proto.Part) -> "Part":
        """Of what came over the wire; one without content, as a later version may send, is an empty text."""
        kind = part.WhichOneof("content")
        if kind == "data":
            data = from_value(part.data)
            return cls(text="null") if data is None else cls(data=data, media_type=part.media_type, name=part.name)
        content: Any = getattr(part, kind) if kind else ""
        return cls(**{kind or "text": content}, media_type=part.media_type, name=part.name)


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """What somebody said."""

    # Of one that is sent one at least.
    parts: tuple[Part, ...] = ()
    role: Literal["user", "assistant", "system"] | str = "user"
    # For the agent, or of it for its callers; kept as it is.
    metadata: Mapping[str, str] = field(default_factory=dict)
    # The caller's, or the platform's; "" for what was never sent.
    message_id: str = ""

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.parts if part.text is not None)

    @classmethod
    def of(cls, content: "Content", role: str = "user") -> "ChatMessage":
        """Of a text, a part or several; a message stays what it is, with its own role."""
        if isinstance(content, ChatMessage):
            return content
        pieces = [content] if isinstance(content, str | Part) else content
        return cls(tuple(Part(text=piece) if isinstance(piece, str) else piece for piece in pieces), role)

    def to_proto(self) -> proto.ChatMessage:
        """The same on the wire, without its id, which stands beside it there.

        Raises:
            InvalidArgument: the `data` of a part is not JSON.
        """
        return proto.ChatMessage(
            role=self.role, parts=[part.to_proto() for part in self.parts], metadata=self.metadata
        )

    @classmethod
    def of_proto(cls, message: proto.ChatMessage, message_id: str = "") -> "ChatMessage":
        """Of what came over the wire, and the id that stood beside it."""
        parts = tuple(Part.of_proto(part) for part in message.parts)
        return cls(parts, message.role or "user", dict(message.metadata), message_id)


# What a reply is sent in.
Piece = str | Part
# What a message may be made of.
Content = str | Part | ChatMessage | Iterable[str | Part]


@runtime_checkable
class ToolCall(Protocol):
    """A tool's call, as it is recorded."""

    # Joins its two events, made by the platform.
    call_id: str

    def result(self, value: Json) -> None:
        """What came of it: any JSON; None if it is not said.

        Raises:
            InvalidArgument: it is not JSON.
        """


class Context(Protocol):
    """What `on_message` gets beside its message: the conversation that it is in.

    For the task that handles the message, and those that it begins; what they say after its end is not kept.
    """

    # The agent and the conversation.
    actor: ActorId
    # Whose conversation it is, as the gateway knows its callers: "key:ci", "local".
    principal: str
    # The message's own.
    message_id: str
    # How often the message was begun, from 1.
    attempt: int
    # Set when the message is to end; its task is cancelled 5 s later, and again every 5 s until it ends.
    cancelled: asyncio.Event

    async def history(self, limit: int | None = None) -> list[ChatMessage]:
        """The messages before this one and their replies, the oldest first; of more than `limit`, the last.

        Those that have not ended, or were trimmed by the agent's bounds, are not among them. Reads the log each time.

        Raises:
            Unavailable: the log cannot be read now.
        """

    @property
    def state(self) -> Json:
        """The conversation's: any JSON; None at first. A value of the handler's own: only `set_state` changes it."""

    @property
    def state_version(self) -> int:
        """How often it was set; 0 at first. For `set_state`, whose caller wants to have seen what it replaces."""

    def state_as(self, model: "type[ModelT]") -> "ModelT | None":
        """The state as a pydantic model; None without one.

        Raises:
            pydantic.ValidationError: it is none.
        """

    async def set_state(self, value: "Json | BaseModel", expected_version: int | None = None) -> int:
        """Sets the state; on disk when it returns, with its new version.

        Args:
            value: at most 4 MiB less 64 KiB of JSON, or a pydantic model.
            expected_version: the one that it must have; None for the one that `state` shows.

        Raises:
            StateConflict: it has another version than expected.
            InvalidArgument: it is not JSON, or too large.
            FailedPrecondition: the message has ended.
        """

    async def reply(self, piece: Piece) -> None:
        """Sends a piece of the reply, as `yield` does; waits while the log is far behind.

        Callers have it once it is on disk, which is later than this returns.

        Raises:
            MessageTooLarge: the reply is longer than a message may be, 4 MiB less 64 KiB.
            TypeError: it is no piece.
        """

    def tool_call(self, name: str, arguments: Json = None) -> AbstractAsyncContextManager[ToolCall]:
        """Records a tool's call around what it does, and what came of it, an error too, which it lets through.

            async with ctx.tool_call("search", {"query": "…"}) as call:
                call.result(await search("…"))

        Raises:
            InvalidArgument: the arguments are not JSON.
        """

    @property
    def model(self) -> "Model":
        """The language models that agent.yaml permits; what they generate ends with the message."""


# What `on_message` may return.
Reply = str | Part | ChatMessage | None
Replies = AsyncIterator[Piece]


def to_value(value: Json) -> struct_pb2.Value:
    """JSON on the wire.

    Raises:
        InvalidArgument: it is none.
    """
    try:
        return json_format.ParseDict(value, struct_pb2.Value())
    except (json_format.ParseError, TypeError, ValueError, RecursionError) as error:
        raise errors.InvalidArgument(f"this is not JSON: {error}") from None


def from_value(value: struct_pb2.Value) -> Json:
    """What it is in Python; whole numbers are ints. Protobuf's own way refuses numbers that JSON does not have."""
    match value.WhichOneof("kind"):
        case "struct_value":
            return {name: from_value(each) for name, each in value.struct_value.fields.items()}
        case "list_value":
            return [from_value(each) for each in value.list_value.values]
        case "number_value":
            return int(value.number_value) if value.number_value.is_integer() else value.number_value
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
    return None
