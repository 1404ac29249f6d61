"""What a batch of appends makes of its conversations: decided here, from what is there, without a database.

An append is taken whole or refused whole, in the order of the batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.errors import AgentError

from .store import Append, Appended, Key

# Events up to here lie in their rows, larger ones in blobs.
INLINE_BYTES = 64 * 1024
# 4 MiB is what a message may have; the rest is for what is around it.
MAX_EVENT_BYTES = 4 * 1024 * 1024 + INLINE_BYTES
MAX_STATE_BYTES = 4 * 1024 * 1024
MAX_ID_LENGTH = 200
# A token is the conversation's number, and how often its lease was given: it grows also from a conversation that was
# deleted to the next one of its name.
_LEASE_BITS = 24
_ENDS = frozenset({"completion", "failure"})
# What a message must be there and not at its end for, and what belongs to none.
_FREE = frozenset({"earlier", "state"})
_CANCELLED = 1  # google.rpc.Code
# With a message's status, in its row: its end was asked for.
ASKED = 64


def is_id(text: str) -> bool:
    """Whether that can be the id of a conversation or a message."""
    return 0 < len(text) <= MAX_ID_LENGTH and text.isascii() and text.isprintable()


def token_of(conversation: int, leases: int) -> int:
    """The token of a lease."""
    return (conversation << _LEASE_BITS) + leases


@dataclass(slots=True)
class Head:
    """What a conversation's row says that an append looks at or changes."""

    id: int
    leases: int
    last_sequence: int
    bytes: int
    state_version: int
    state_bytes: int
    unended: int

    def copy(self) -> "Head":
        """To be changed; `dataclasses.replace` takes five times as long."""
        return Head(
            self.id,
            self.leases,
            self.last_sequence,
            self.bytes,
            self.state_version,
            self.state_bytes,
            self.unended,
        )


@dataclass(slots=True)
class Message:
    """What a message's row says."""

    status: int
    attempts: int
    first_sequence: int
    last_sequence: int

    @property
    def cancelled(self) -> bool:
        """Its end was asked for, and has not come."""
        return bool(self.status & ASKED)

    def info(self, message_id: str) -> proto.MessageInfo:
        """As callers see it."""
        return proto.MessageInfo(
            message_id=message_id,
            status=proto.MessageStatus.ValueType(self.status & ~ASKED),
            attempts=self.attempts,
            first_sequence=self.first_sequence,
            last_sequence=self.last_sequence,
        )


@dataclass(slots=True)
class _Draft:
    """An append that is looked through and not yet taken."""

    head: Head
    events: list[tuple[int, int, str, int, bytes, bytes | None]] = field(default_factory=list)
    messages: dict[tuple[int, str], Message] = field(default_factory=dict)
    blobs: dict[tuple[int, bytes], bytes] = field(default_factory=dict)
    state: bytes | None = None
    failed: bool = False


@dataclass
class Plan:
    """What is to be written for a batch.

    Args:
        heads: of the conversations that there are.
        messages: that the events name and that are there, by the conversation's number and their id.
        now_ns: Unix time, of all events.
        max_bytes: a conversation's, but for what says that a message failed.
    """

    heads: Mapping[Key, Head]
    messages: dict[tuple[int, str], Message]
    now_ns: int
    max_bytes: int
    # Rows of `events`.
    events: list[tuple[int, int, str, int, bytes, bytes | None]] = field(default_factory=list)
    changed_heads: dict[int, Head] = field(default_factory=dict)
    changed_messages: dict[tuple[int, str], Message] = field(default_factory=dict)
    states: dict[int, bytes] = field(default_factory=dict)
    blobs: dict[tuple[int, bytes], bytes] = field(default_factory=dict)
    _stamp: proto.Event = field(default_factory=proto.Event)

    def __post_init__(self) -> None:
        self._stamp.time.FromNanoseconds(self.now_ns)

    def add_all(self, batch: Sequence[Append]) -> list[Appended | AgentError]:
        """Takes or refuses each of them. What follows a refused one in its conversation is refused like it, but after
        a `StateConflict`: it is not what the author's code went on from."""
        refused: dict[Key, AgentError] = {}
        answers: list[Appended | AgentError] = []
        for append in batch:
            answer = refused.get(append.key) or self._add(append)
            if isinstance(answer, AgentError) and not isinstance(answer, errors.StateConflict):
                refused[append.key] = answer
            answers.append(answer)
        return answers

    def head_rows(self) -> list[tuple[int, ...]]:
        """What the heads are from now on; last their numbers."""
        return [
            (head.last_sequence, head.bytes, head.state_version, head.state_bytes, head.unended, self.now_ns, head.id)
            for head in self.changed_heads.values()
        ]

    def message_rows(self) -> list[tuple[int, str, int, int, int, int]]:
        """Rows of `messages`, new and changed."""
        return [
            (*at, message.status, message.attempts, message.first_sequence, message.last_sequence)
            for at, message in self.changed_messages.items()
        ]

    def _add(self, append: Append) -> Appended | AgentError:
        try:
            return self._try(append)
        except AgentError as error:
            return error

    def _try(self, append: Append) -> Appended:
        head = self._head(append)
        if append.after is not None:
            if head.last_sequence == append.after + len(append.events):
                return Appended(head.last_sequence)
            if head.last_sequence != append.after:
                raise errors.Aborted(
                    f"conversation '{append.key.conversation_id}' goes to {head.last_sequence}, not {append.after}"
                )
        for event in append.events:
            if event.HasField("message") and (known := self.messages.get((head.id, event.message_id))):
                return Appended(head.last_sequence, known.info(event.message_id))
        if append.expected_state_version not in (None, head.state_version):
            raise errors.StateConflict(
                f"the conversation's state has version {head.state_version}, not {append.expected_state_version}; "
                "read it again"
            )
        draft = _Draft(head.copy())
        for event in append.events:
            self._event(draft, append, event)
        if draft.head.bytes > self.max_bytes and not draft.failed:
            raise errors.ConversationFull(
                f"conversation '{append.key.conversation_id}' has {head.bytes} bytes and may have {self.max_bytes}: "
                "begin another one, or set a smaller max_bytes for the agent's conversations"
            )
        self._take(draft)
        return Appended(draft.head.last_sequence)

    def _head(self, append: Append) -> Head:
        """The conversation's, if the append may write into it."""
        head = self.heads.get(append.key)
        if head is None:
            # Also one that somebody opened just before it was deleted: who opens it again goes on.
            raise errors.LeaseLost(f"conversation '{append.key.conversation_id}' was deleted; open it again")
        head = self.changed_heads.get(head.id, head)
        if append.token != token_of(head.id, head.leases):
            raise errors.LeaseLost(
                f"another worker writes into conversation '{append.key.conversation_id}' now; open it again"
            )
        return head

    def _event(self, draft: _Draft, append: Append, event: proto.Event) -> None:
        head = draft.head
        kind = event.WhichOneof("content")
        if kind is None:
            raise errors.InvalidArgument("an event has no content")
        sequence = head.last_sequence + 1
        self._message(draft, kind, event, sequence)
        if kind == "state":
            event = self._state(draft, append, event)
        body = event.SerializeToString()
        if len(body) > MAX_EVENT_BYTES:
            raise errors.MessageTooLarge(
                f"an event of {len(body)} bytes is larger than {MAX_EVENT_BYTES}; send less at a time"
            )
        stamp = self._stamp
        stamp.sequence = sequence
        stamp.token = append.token
        # Serialized messages that follow each other are one message: https://protobuf.dev/programming-guides/encoding
        stamped = stamp.SerializeToString()
        size = len(body) + len(stamped)
        digest = None
        if size > INLINE_BYTES:
            digest = sha256(body).digest()
            draft.blobs[head.id, digest] = body
            body = b""
        draft.events.append((head.id, sequence, event.message_id, size, body + stamped, digest))
        head.last_sequence = sequence
        head.bytes += size

    def _message(self, draft: _Draft, kind: str, event: proto.Event, sequence: int) -> None:
        """What an event does to its message."""
        message_id = event.message_id
        if not message_id and kind in _FREE:
            return
        if not is_id(message_id):
            raise errors.InvalidArgument(f"a message id has 1 to {MAX_ID_LENGTH} printable ASCII characters")
        head = draft.head
        at = (head.id, message_id)
        message = draft.messages.get(at) or self.messages.get(at)
        if kind == "message":
            if message is not None:
                raise errors.InvalidArgument(f"message '{message_id}' is there twice")
            draft.messages[at] = Message(proto.MESSAGE_STATUS_PENDING, 0, sequence, 0)
            head.unended += 1
            return
        if kind in _FREE:
            return
        if message is None:
            raise errors.MessageNotFound(f"the conversation has no message '{message_id}'")
        if message.last_sequence:
            raise errors.FailedPrecondition(f"message '{message_id}' has ended", reason="MESSAGE_ENDED")
        if kind == "attempt":
            number = event.attempt.number or message.attempts + 1
            status = proto.MESSAGE_STATUS_RUNNING | message.status & ASKED
            draft.messages[at] = Message(status, number, message.first_sequence, 0)
        elif kind == "interruption":
            number = max(0, message.attempts - 1)
            status = proto.MESSAGE_STATUS_PENDING | message.status & ASKED
            draft.messages[at] = Message(status, number, message.first_sequence, 0)
        elif kind == "cancellation":
            draft.messages[at] = Message(message.status | ASKED, message.attempts, message.first_sequence, 0)
        elif kind in _ENDS:
            status = proto.MESSAGE_STATUS_COMPLETED
            if kind == "failure":
                draft.failed = True
                cancelled = event.failure.code == _CANCELLED
                status = proto.MESSAGE_STATUS_CANCELLED if cancelled else proto.MESSAGE_STATUS_FAILED
            draft.messages[at] = Message(status, message.attempts, message.first_sequence, sequence)
            head.unended -= 1

    def _state(self, draft: _Draft, append: Append, event: proto.Event) -> proto.Event:
        """Sets the state; the event with its version."""
        head = draft.head
        if draft.state is not None:
            raise errors.InvalidArgument("one append sets the state twice")
        if len(append.state) > MAX_STATE_BYTES:
            raise errors.MessageTooLarge(
                f"a state of {len(append.state)} bytes is larger than {MAX_STATE_BYTES}; keep less in it"
            )
        version = head.state_version + 1
        if event.state.version not in (0, version):
            raise errors.StateConflict(f"the conversation's state has version {head.state_version}; read it again")
        draft.state = append.state
        head.bytes += len(append.state) - head.state_bytes
        head.state_bytes = len(append.state)
        head.state_version = version
        if not event.state.version:
            copy = proto.Event()
            copy.CopyFrom(event)
            copy.state.version = version
            return copy
        return event

    def _take(self, draft: _Draft) -> None:
        head = draft.head
        self.changed_heads[head.id] = head
        self.events += draft.events
        self.messages |= draft.messages
        self.changed_messages |= draft.messages
        self.blobs |= draft.blobs
        if draft.state is not None:
            self.states[head.id] = draft.state
