"""What an author's `on_message` gets, and how what it does becomes events."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import event_log_pb2 as wire
from agentruntime.conversation import ActorId, ChatMessage, Json, Part, to_value
from agentruntime.intake import LONGEST_MESSAGE_BYTES

from agent_worker.conversations.log import LogClient
from agent_worker.conversations.mailbox import Mailbox
from agent_worker.conversations.run import Run

if TYPE_CHECKING:
    from agentruntime.conversation import ModelT
    from agentruntime.model import Model
    from pydantic import BaseModel

# Of a message, a reply or a state: what carries it has its own bytes too.
MOST_BYTES = LONGEST_MESSAGE_BYTES - 64 * 1024
# Events that are read at a time.
_PAGE = 256
# None was set, or never anything.
_NO_STATE = (b"", b"null")


class ConversationContext:
    """Of one message; see `agentruntime.conversation.Context`."""

    def __init__(self, agent: str, mailbox: Mailbox, run: Run, client: LogClient) -> None:
        self._mailbox = mailbox
        self._run = run
        self._client = client
        self.actor = ActorId(agent, mailbox.conversation_id)
        self.principal = mailbox.principal
        self.message_id = run.message.message_id
        self.attempt = run.message.attempts
        self.cancelled = run.cancelled
        self._parts: list[proto.Part] = []
        self._bytes = 0
        self._state: tuple[bytes, Json] = (b"", None)
        self._sets: asyncio.Lock | None = None

    # Pieces of the reply.

    async def reply(self, piece: object) -> None:
        self.say(piece)
        if not self._mailbox.outbox.has_room:
            await self._mailbox.outbox.room()

    def say(self, piece: object) -> None:
        """A piece of the reply, without waiting for room."""
        part = _part(piece)
        self._count(part)
        self._parts.append(part)
        self._run.say(proto.Event(message_id=self.message_id, chunk=part))

    def completion(self, returned: object) -> proto.Event:
        """The last event of a message whose handler returned this, after the pieces it has sent.

        Raises:
            TypeError: it can be no reply.
            MessageTooLarge: it is longer than a message may be.
        """
        role, metadata, parts = "assistant", {}, self._parts
        if isinstance(returned, ChatMessage):
            metadata = dict(returned.metadata)
            role = returned.role if returned.role != "user" else role
            more = [part.to_proto() for part in returned.parts]
        else:
            more = [] if returned is None else [_part(returned)]
        for part in more:
            self._count(part)
        message = proto.ChatMessage(role=role, parts=_joined([*parts, *more]), metadata=metadata)
        return proto.Event(message_id=self.message_id, completion=message)

    def _count(self, part: proto.Part) -> None:
        self._bytes += part.ByteSize() + 8
        if self._bytes > MOST_BYTES:
            raise errors.MessageTooLarge(f"the reply is longer than {MOST_BYTES} bytes, which is all that one may be")

    # What was said, and what is known.

    async def history(self, limit: int | None = None) -> list[ChatMessage]:
        said: list[proto.Event] = []
        before, more = 0, limit is None or limit > 0
        # Those that have not ended are not said yet: this one, and those that wait.
        unended = set(self._mailbox.messages)
        while more:
            read = wire.ReadEvents(
                conversation_id=self._mailbox.conversation_id, after_sequence=before, limit=_PAGE, backwards=True
            )
            reply = await self._client.ask(wire.LogRequest(read=read, principal=self.principal))
            for event in reply.events.events:
                before = event.sequence
                kind = event.WhichOneof("content")
                if kind == "earlier" or (kind in ("message", "completion") and event.message_id not in unended):
                    said.append(event)
            more = reply.events.more and (limit is None or len(said) < limit)
        messages = _in_turn(said[::-1])
        return messages if limit is None else messages[max(len(messages) - limit, 0) :]

    @property
    def state(self) -> Json:
        raw = self._mailbox.state
        if self._state[0] is not raw:
            self._state = raw, (json.loads(raw) if raw else None)
        return self._state[1]

    @property
    def state_version(self) -> int:
        return self._mailbox.state_version

    def state_as(self, model: "type[ModelT]") -> "ModelT | None":
        raw = self._mailbox.state
        return None if raw in _NO_STATE else model.model_validate_json(raw)

    async def set_state(self, value: "Json | BaseModel", expected_version: int | None = None) -> int:
        if hasattr(value, "model_dump"):
            value = value.model_dump(mode="json")
        try:
            _check_keys(value)
            state = json.dumps(
                value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
            ).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise errors.InvalidArgument(f"a state must be JSON: {error}") from None
        if len(state) > MOST_BYTES:
            raise errors.InvalidArgument(
                f"a state of {len(state)} bytes is longer than {MOST_BYTES}, which is all that one may be"
            )
        self._sets = self._sets or asyncio.Lock()
        async with self._sets:
            return await self._mailbox.set_state(self._run, state, expected_version)

    # What it does.

    @asynccontextmanager
    async def tool_call(self, name: str, arguments: Json = None) -> AsyncIterator["RecordedCall"]:
        call = RecordedCall(secrets.token_hex(8))
        begun = proto.ToolCall(call_id=call.call_id, name=name, arguments=to_value(arguments))
        self._run.say(proto.Event(message_id=self.message_id, tool_call=begun))
        ended = proto.ToolCall(call_id=call.call_id, name=name)
        try:
            yield call
            ended.result.CopyFrom(to_value(call.value))
        except BaseException as error:
            ended.error = f"{type(error).__name__}: {error}"
            raise
        finally:
            self._run.say(proto.Event(message_id=self.message_id, tool_call=ended))

    @property
    def model(self) -> "Model":
        from agentruntime import context  # noqa: PLC0415 — clients, for those that think, and only for them

        return context.model.until(self.cancelled)


class RecordedCall:
    """A tool's call that is under way."""

    def __init__(self, call_id: str) -> None:
        self.call_id = call_id
        self.value: Json = None

    def result(self, value: Json) -> None:
        """What came of it: any JSON."""
        to_value(value)  # here it can be seen which line said what is none
        self.value = value


def _check_keys(value: object) -> None:
    """Raises TypeError for an object with a key that is no text: json.dumps would make it one, or fail to sort it."""
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} of an object is {type(key).__name__}, and must be str")
            _check_keys(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            _check_keys(each)


def _part(piece: object) -> proto.Part:
    if isinstance(piece, str):
        return proto.Part(text=piece)
    if isinstance(piece, Part):
        return piece.to_proto()
    raise TypeError(f"on_message() gave {type(piece).__name__}; a piece of a reply is text or a Part")


def _joined(parts: list[proto.Part]) -> list[proto.Part]:
    """The same, with texts that follow each other as one."""
    if len(parts) < 2:
        return parts
    joined: list[proto.Part] = []
    texts: list[str] = []

    def end_text() -> None:
        if texts:
            joined.append(proto.Part(text="".join(texts)))
            texts.clear()

    for part in parts:
        if part.WhichOneof("content") == "text" and not part.media_type and not part.name:
            texts.append(part.text)
        else:
            end_text()
            joined.append(part)
    end_text()
    return joined


def _in_turn(said: list[proto.Event]) -> list[ChatMessage]:
    """Messages each followed by what was replied to it, though others were sent before that."""
    replies = {event.message_id: event.completion for event in said if event.HasField("completion")}
    turns: list[ChatMessage] = []
    for event in said:
        if event.HasField("earlier"):
            turns.append(ChatMessage.of_proto(event.earlier))
        elif event.HasField("message"):
            turns.append(ChatMessage.of_proto(event.message, event.message_id))
            if reply := replies.pop(event.message_id, None):
                turns.append(ChatMessage.of_proto(reply, event.message_id))
        elif reply := replies.pop(event.message_id, None):
            # Its message is not kept any more, or beyond the limit.
            turns.append(ChatMessage.of_proto(reply, event.message_id))
    return turns
