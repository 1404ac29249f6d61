"""What requests to the HTTP API hold and its answers say, as the API's description has them."""

import base64
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.errors import InvalidArgument
from google.protobuf import json_format
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from uapi_gateway.conversations import plain
from uapi_gateway.conversations.sending import Reply, converses
from uapi_gateway.http import bounds, json_form
from uapi_gateway.registry import Agent

LARGEST_PAGE = 1000
_WHEN_BUSY = {
    None: proto.WHEN_BUSY_UNSPECIFIED,
    "queue": proto.WHEN_BUSY_QUEUE,
    "reject": proto.WHEN_BUSY_REJECT,
    "interrupt": proto.WHEN_BUSY_INTERRUPT,
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    _few = model_validator(mode="before")(bounds.few)


class Part(_Body):
    """A piece of a message: exactly one of `text`, `data` (any JSON), `blob` (base64) and `url`."""

    text: str | None = None
    data: Any = None
    blob: str | None = None
    url: str | None = None
    media_type: str = Field(default="", description='Of `blob` and `url`: "image/png".')
    name: str = Field(default="", description="A file's name.")

    @model_validator(mode="after")
    def _one(self) -> "Part":
        if len(self.model_fields_set & {"text", "data", "blob", "url"}) != 1:
            raise ValueError("a part has exactly one of text, data, blob and url")
        return self

    def message(self) -> proto.Part:
        """Raises:
        InvalidArgument: the blob is no base64.
        """
        made = proto.Part(media_type=self.media_type, name=self.name)
        if self.text is not None:
            made.text = self.text
        elif self.url is not None:
            made.url = self.url
        elif self.blob is not None:
            try:
                made.blob = base64.b64decode(self.blob, validate=True)
            except ValueError:
                raise InvalidArgument("a part's blob is no base64", reason="INVALID_DATA") from None
        else:
            # What lies too deep for it is refused already (bounds.py).
            json_format.ParseDict(self.data, made.data)
        return made


class Message(_Body):
    """What somebody says."""

    role: Literal["user", "assistant", "system"] = "user"
    content: str | Annotated[list[Part], Field(fail_fast=True, max_length=bounds.MOST_PARTS)]
    metadata: Annotated[dict[str, str], BeforeValidator(bounds.few)] = Field(
        default={}, description="For the agent; kept as it is."
    )

    def message(self) -> proto.ChatMessage:
        said = [Part(text=self.content)] if isinstance(self.content, str) else self.content
        return proto.ChatMessage(role=self.role, parts=[part.message() for part in said], metadata=self.metadata)


class RunRequest(_Body):
    """One message to an agent: the last one, the user's. Those before it are what was said before; they are looked at
    where the conversation is new, and where the agent keeps none."""

    agent_name: str = Field(default="", description="As in the path, if it is given.")
    conversation_id: str = Field(default="", description='"http-{agent_name}" if it is not given.')
    message_id: str = Field(
        default="", description="Made if it is not given. Repeating a request with it does nothing twice."
    )
    messages: list[Message] = Field(fail_fast=True, min_length=1, max_length=bounds.MOST_MESSAGES)
    stream: bool = Field(default=False, description="Answer with server-sent events.")
    when_busy: Literal["queue", "reject", "interrupt"] | None = Field(
        default=None, description="While another message runs; what the agent says if it is not given."
    )
    timeout_s: float | None = Field(
        default=None, gt=0, description="How long to wait for the reply; a message that was taken goes on after that."
    )

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, given: Any) -> Any:
        bounds.check(given)
        return given

    def message(self, agent: str) -> proto.StreamMessageRequest:
        """Raises:
        InvalidArgument: it is for another agent, or does not end with a user's message.
        """
        if self.agent_name not in ("", agent):
            raise InvalidArgument(f"the path is that of agent '{agent}', the body names '{self.agent_name}'")
        *earlier, last = self.messages
        if last.role != "user":
            raise InvalidArgument(f"the last message must be the user's; it is of the role '{last.role}'")
        return proto.StreamMessageRequest(
            conversation_id=self.conversation_id or f"http-{agent}",
            message_id=self.message_id,
            message=last.message(),
            when_busy=_WHEN_BUSY[self.when_busy],
            earlier=[each.message() for each in earlier],
        )


class Answer(BaseModel):
    """A message of the agent."""

    role: str
    content: str = Field(description="Its text.")
    parts: list[dict[str, Any]] | None = Field(default=None, description="All of it, where it is more than text.")
    message_id: str = Field(description="Of the message that it answers.")
    metadata: dict[str, str] = {}


class RunResponse(BaseModel):
    messages: list[Answer]
    status: Literal["completed"]
    conversation_id: str = Field(description="Empty where the agent keeps none: it has no `on_message`.")

    @classmethod
    def of(cls, reply: Reply) -> "RunResponse":
        said = reply.message
        only_text = all(part.WhichOneof("content") == "text" for part in said.parts)
        answer = Answer(
            role=said.role or "assistant",
            content=plain.text_of(said),
            parts=None if only_text else [json_form.fields(part) for part in said.parts],
            message_id=reply.message_id,
            metadata=dict(said.metadata),
        )
        kept = reply.conversation_id if reply.sequence else ""
        return cls(messages=[answer], status="completed", conversation_id=kept)


class AgentEntry(BaseModel):
    name: str
    status: Literal["ready", "asleep", "stopped", "unavailable"]
    reason: str = Field(description="Why it is not ready.")
    services: list[str]
    conversations: bool = Field(description="It has an `on_message`, and its conversations are kept.")

    @classmethod
    def of(cls, agent: Agent) -> "AgentEntry":
        status: Literal["ready", "asleep", "stopped", "unavailable"] = "unavailable"
        if agent.ready:
            status = "ready"
        elif agent.stopped:
            status = "stopped"
        elif agent.asleep:
            status = "asleep"
        return cls(
            name=agent.agent_id,
            status=status,
            reason=agent.reason,
            services=list(agent.services),
            conversations=converses(agent),
        )


class AgentList(BaseModel):
    agents: list[AgentEntry]


Status = Literal["pending", "running", "completed", "failed", "cancelled"]


class MessageEntry(BaseModel):
    """How far a message is."""

    message_id: str
    status: Status
    attempts: int = Field(description="How often it was begun.")
    first_sequence: int
    last_sequence: int = Field(description="Of its end; 0 until then.")

    @classmethod
    def of(cls, info: proto.MessageInfo) -> "MessageEntry":
        return cls(
            message_id=info.message_id,
            status=status_name(info.status),
            attempts=info.attempts,
            first_sequence=info.first_sequence,
            last_sequence=info.last_sequence,
        )


class ConversationEntry(BaseModel):
    conversation_id: str
    agent: str
    created_at: datetime
    changed_at: datetime
    first_sequence: int = Field(description="Of the oldest event that is kept.")
    last_sequence: int
    bytes: int
    state_version: int = Field(description="0 without a state.")
    messages: list[MessageEntry] = Field(description="Those that have not ended; in lists none.")

    @classmethod
    def of(cls, conversation: proto.Conversation) -> "ConversationEntry":
        return cls(
            conversation_id=conversation.conversation_id,
            agent=conversation.agent,
            created_at=conversation.created_at.ToDatetime(UTC),
            changed_at=conversation.changed_at.ToDatetime(UTC),
            first_sequence=conversation.first_sequence,
            last_sequence=conversation.last_sequence,
            bytes=conversation.bytes,
            state_version=conversation.state_version,
            messages=[MessageEntry.of(info) for info in conversation.messages],
        )


class ConversationList(BaseModel):
    conversations: list[ConversationEntry]
    next_page_token: str = Field(description="Empty on the last page.")


class Reading(BaseModel):
    """Which events are wanted."""

    after: int = Field(default=0, ge=0, description="A sequence number: the first event is the next.")
    message_id: str = Field(default="", description="Only those of one message.")
    limit: int = Field(default=LARGEST_PAGE, ge=1, le=LARGEST_PAGE, description="Not of a stream.")
    follow: bool | None = Field(default=None, description="Also those to come; streams do if nothing is said.")


class EventList(BaseModel):
    events: list[dict[str, Any]]
    more: bool = Field(description="There are more after the last of these.")


class CancelResponse(BaseModel):
    status: Status


class Failure(BaseModel):
    code: str = Field(description="Of gRPC: NOT_FOUND")
    reason: str = Field(description="AGENT_NOT_FOUND")
    message: str
    metadata: dict[str, str] = {}


class FailureResponse(BaseModel):
    error: Failure


def status_name(status: int) -> Status:
    named: dict[int, Status] = {
        proto.MESSAGE_STATUS_RUNNING: "running",
        proto.MESSAGE_STATUS_COMPLETED: "completed",
        proto.MESSAGE_STATUS_FAILED: "failed",
        proto.MESSAGE_STATUS_CANCELLED: "cancelled",
    }
    return named.get(status, "pending")
