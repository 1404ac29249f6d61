"""Messages and events of a conversation as A2A has them: a message is a task, what comes of it are its updates.

    message       the task, submitted, with the message as its history
    attempt       working; a later one begins the reply anew
    chunk         a piece of the artifact "reply"
    completion    the artifact's last piece, and completed
    failure       failed or canceled, with why

A client that took up all updates has the same as one that asks for the task.
"""

import json
import math
from collections.abc import Iterable, Mapping

from a2a.types import a2a_pb2 as a2a
from a2a.utils.errors import InvalidParamsError
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.rpc import code_pb2

from uapi_gateway.a2a.identifiers import task_id

# The artifact that is the reply.
REPLY = "reply"
Update = a2a.TaskStatusUpdateEvent | a2a.TaskArtifactUpdateEvent
_ROLES = {a2a.ROLE_UNSPECIFIED: "user", a2a.ROLE_USER: "user", a2a.ROLE_AGENT: "assistant"}
ENDED = frozenset((a2a.TASK_STATE_COMPLETED, a2a.TASK_STATE_FAILED, a2a.TASK_STATE_CANCELED))


class TaskView:
    """A task, as the events so far make it; without `artifacts` nothing of its reply is kept."""

    def __init__(self, conversation_id: str, message_id: str, *, artifacts: bool = True) -> None:
        self._artifacts = artifacts
        self.context_id = conversation_id
        self.id = task_id(conversation_id, message_id)
        # Of the last event; 0 where none is on a log.
        self.sequence = 0
        self._status = a2a.TaskStatus(state=a2a.TASK_STATE_SUBMITTED)
        self._history: list[a2a.Message] = []
        # The reply so far, and what is said of it.
        self._pieces: list[proto.Part] = []
        self._metadata: Mapping[str, str] = {}

    @property
    def state(self) -> "a2a.TaskState":
        return self._status.state

    @property
    def begun(self) -> bool:
        """Its message is here."""
        return bool(self._history)

    @property
    def changed_ns(self) -> int:
        """When its status changed last."""
        return self._status.timestamp.ToNanoseconds()

    @property
    def ended(self) -> bool:
        return self._status.state in ENDED

    def add(self, event: proto.Event) -> list[Update]:
        """Takes up the next event; what there is to tell of it to those who know all before."""
        self.sequence = event.sequence
        match event.WhichOneof("content"):
            case "message":
                self._history = [self._said(event)]
                self._status.timestamp.CopyFrom(event.time)
            case "attempt":
                self._pieces = []
                # One that follows an interruption has the number of the one before.
                later = event.attempt.number > 1 or self.state == a2a.TASK_STATE_WORKING
                again = {"attempt": event.attempt.number} if later else {}
                return [self._turned(a2a.TASK_STATE_WORKING, event.time, metadata=again)]
            case "chunk" if self._artifacts:
                self._pieces.append(event.chunk)
                return [self._artifact([part_out(event.chunk)], append=len(self._pieces) > 1)]
            case "completion":
                updates = self._completed(event.completion) if self._artifacts else []
                return [*updates, self._turned(a2a.TASK_STATE_COMPLETED, event.time)]
            case "failure":
                return [self._failed(event)]
        return []

    def task(self, history_length: int | None = None) -> a2a.Task:
        """The task as it is now, with at most so many messages of its history."""
        kept = self._history if history_length is None else self._history[:history_length]
        made = a2a.Task(id=self.id, context_id=self.context_id, status=self._status, history=kept)
        if self._pieces:
            made.artifacts.append(self._reply(map(part_out, joined(self._pieces))))
        return made

    def answer(self) -> a2a.Message:
        """The reply as a message, of agents that keep no conversation in which a task could be found again."""
        return a2a.Message(
            message_id=f"{self.id}-{REPLY}",
            context_id=self.context_id,
            role=a2a.ROLE_AGENT,
            parts=map(part_out, joined(self._pieces)),
            metadata=_struct(self._metadata),
        )

    def _said(self, event: proto.Event) -> a2a.Message:
        message = event.message
        return a2a.Message(
            message_id=event.message_id,
            context_id=self.context_id,
            task_id=self.id,
            role=a2a.ROLE_AGENT if message.role == "assistant" else a2a.ROLE_USER,
            parts=map(part_out, message.parts),
            metadata=_struct(message.metadata),
        )

    def _completed(self, reply: proto.ChatMessage) -> list[Update]:
        told, whole = joined(self._pieces), joined(reply.parts)
        self._pieces, self._metadata = list(reply.parts), dict(reply.metadata)
        if told and told == whole:
            # Nothing is left to be said, but that this was all; an artifact's piece holds one part at least.
            return [self._artifact([a2a.Part(text="")], append=True, last=True)]
        return [self._artifact(list(map(part_out, whole)), append=False, last=True)] if whole else []

    def _failed(self, event: proto.Event) -> Update:
        failure = event.failure
        said = a2a.Message(
            message_id=f"{self.id}-failure",
            context_id=self.context_id,
            task_id=self.id,
            role=a2a.ROLE_AGENT,
            parts=[a2a.Part(text=failure.message)],
            metadata=_struct({**failure.metadata, "code": code_name(failure.code), "reason": failure.reason}),
        )
        canceled = failure.code == code_pb2.CANCELLED
        return self._turned(a2a.TASK_STATE_CANCELED if canceled else a2a.TASK_STATE_FAILED, event.time, said)

    def _turned(
        self,
        state: "a2a.TaskState",
        time: timestamp_pb2.Timestamp,
        said: a2a.Message | None = None,
        metadata: Mapping[str, int] | None = None,
    ) -> Update:
        self._status = a2a.TaskStatus(state=state, timestamp=time, message=said)
        return a2a.TaskStatusUpdateEvent(
            task_id=self.id,
            context_id=self.context_id,
            status=self._status,
            metadata=_struct(metadata) if metadata else None,
        )

    def _artifact(self, parts: list[a2a.Part], *, append: bool, last: bool = False) -> Update:
        return a2a.TaskArtifactUpdateEvent(
            task_id=self.id,
            context_id=self.context_id,
            artifact=self._reply(parts),
            append=append,
            last_chunk=last,
        )

    def _reply(self, parts: Iterable[a2a.Part]) -> a2a.Artifact:
        metadata = _struct(self._metadata) if self._metadata else None
        return a2a.Artifact(artifact_id=REPLY, name=REPLY, parts=parts, metadata=metadata)


def joined(parts: Iterable[proto.Part]) -> list[proto.Part]:
    """The same parts, with texts that follow one another as one."""
    made: list[proto.Part] = []
    texts: list[str] = []
    for part in parts:
        if _is_text(part):
            texts.append(part.text)
            continue
        made += _text(texts)
        texts = []
        made.append(part)
    return [*made, *_text(texts)]


def _is_text(part: proto.Part) -> bool:
    return part.WhichOneof("content") == "text" and not (part.name or part.media_type)


def _text(texts: list[str]) -> list[proto.Part]:
    text = "".join(texts)
    return [proto.Part(text=text)] if text else []


def part_out(part: proto.Part) -> a2a.Part:
    """A part as A2A has it."""
    made = a2a.Part(filename=part.name, media_type=part.media_type)
    match part.WhichOneof("content"):
        case "data":
            made.data.CopyFrom(part.data)
            _mend(made.data)
        case "blob":
            made.raw = part.blob
        case "url":
            made.url = part.url
        case _:
            made.text = part.text
    return made


def _mend(value: struct_pb2.Value) -> None:
    """Numbers that an agent may reply and JSON does not have become their names, as protobuf has them of doubles."""
    match value.WhichOneof("kind"):
        case "struct_value":
            for each in value.struct_value.fields.values():
                _mend(each)
        case "list_value":
            for each in value.list_value.values:
                _mend(each)
        case "number_value" if not math.isfinite(value.number_value):
            value.string_value = json.dumps(value.number_value)


def message_in(message: a2a.Message, more: struct_pb2.Struct) -> proto.ChatMessage:
    """What a client says, as conversations have it.

    Args:
        message: what it says.
        more: metadata of the request; the message's own goes before it.

    Raises:
        InvalidParamsError: a part is empty, or a number is none that JSON has.
    """
    try:
        said = {**_plain(more), **_plain(message.metadata)}
        parts = [_part_in(part) for part in message.parts]
    except ValueError as error:
        raise InvalidParamsError(f"the message cannot be read: {error}") from None
    return proto.ChatMessage(role=_ROLES.get(message.role, "user"), parts=parts, metadata=said)


def _part_in(part: a2a.Part) -> proto.Part:
    made = proto.Part(name=part.filename, media_type=part.media_type)
    match part.WhichOneof("content"):
        case "text":
            made.text = part.text
        case "raw":
            made.blob = part.raw
        case "url":
            made.url = part.url
        case "data":
            # Says whether JSON has it.
            json_format.MessageToDict(part.data)
            made.data.CopyFrom(part.data)
        case _:
            raise ValueError("a part has neither text, raw, url nor data")
    return made


def _plain(metadata: struct_pb2.Struct) -> dict[str, str]:
    """Texts as they are, anything else as its JSON."""
    fields = json_format.MessageToDict(metadata)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}


def _struct(fields: Mapping[str, object]) -> struct_pb2.Struct | None:
    if not fields:
        return None
    made = struct_pb2.Struct()
    json_format.ParseDict(dict(fields), made)
    return made


def code_name(code: int) -> str:
    """A gRPC code's name."""
    return code_pb2.Code.Name(code_pb2.Code.ValueType(code)) if code in code_pb2.Code.values() else str(code)
