"""What keeps conversations: their events, messages, states and leases. `sql.py` has it for SQLite and PostgreSQL.

A store knows nothing of workers and of time but what it is told. Who may write is decided here, and nowhere else: by
the fencing token, in the transaction that writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.errors import AgentError


@dataclass(frozen=True, slots=True)
class Key:
    """Which conversation: ids are their callers' to choose, and one caller never meets another's."""

    principal: str
    agent: str
    conversation_id: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write, until somebody gets a larger token."""

    token: int
    last_sequence: int
    state: bytes
    state_version: int
    # Messages that have not ended, in their order, with what was said.
    messages: tuple[tuple[proto.MessageInfo, proto.ChatMessage], ...]
    # Those of them whose end was asked for.
    cancelled: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Append:
    """Events to be written together, or not at all."""

    key: Key
    token: int
    # Without sequence, time and token. A `message` makes its message known, pending, an `attempt` running; a
    # `completion` or a `failure` ends it.
    events: tuple[proto.Event, ...]
    # Where one of the events is a StateChange.
    state: bytes = b""
    expected_state_version: int | None = None
    # The conversation's last sequence number before it, from whoever tries it once more without knowing whether it
    # was written: where the last one is `after + len(events)` it was, which is then the answer, before all other
    # checks but the token's.
    after: int | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of an `Append`."""

    last_sequence: int
    # There was a message of that id already: nothing was written.
    known: proto.MessageInfo | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the conversations, those that changed last first."""

    conversations: tuple[proto.Conversation, ...]
    # "" on the last one.
    next_token: str


@dataclass(frozen=True, slots=True)
class Course:
    """A message, from its own event to the one that ended it."""

    info: proto.MessageInfo
    first: proto.Event
    # None of one that has not ended.
    last: proto.Event | None


@dataclass(frozen=True, slots=True)
class Courses:
    """Some of a conversation's messages, the newest first."""

    courses: tuple[Course, ...]
    # There are, with these.
    count: int


class Store(Protocol):
    """Every method is one transaction. Errors of the database reach the caller as `Unavailable` (STORE_UNAVAILABLE),
    and then nothing was written, or it is unknown whether it was: an append is safe to be repeated with `after`."""

    async def open(self) -> None:
        """Makes or updates the tables; once, before all else."""

    async def close(self) -> None:
        """Ends all connections."""

    async def acquire(
        self, key: Key, holder: str, now_ns: int, *, token: int = 0, existing: bool = False, to_end: bool = False
    ) -> Lease:
        """Takes the lease, and makes the conversation if there is none.

        Args:
            key: of the conversation.
            holder: who writes from now on: a name of the worker's connection, for people who read the table.
            now_ns: Unix time.
            token: of a lease held before, which goes on if it is the latest; 0 for a new one.
            existing: none is made.
            to_end: only to end messages: none is made, and neither the state nor what was said is read.

        Raises:
            ConversationFull: state and messages are more than a worker is told at once.
            ConversationNotFound: there is none, with `token`, `existing` or `to_end`.
        """

    async def append(self, batch: Sequence[Append], now_ns: int) -> list[Appended | AgentError]:
        """Writes what many conversations have to write, in one transaction that is on disk when it returns.

        Returns:
            For each of them what became of it, or why nothing of it was written: `LeaseLost` (FAILED_PRECONDITION;
            another token is the latest, or the conversation was deleted), `StateConflict` (ABORTED),
            `ConversationFull` (RESOURCE_EXHAUSTED).
        """

    async def events(
        self, key: Key, after: int, limit: int, *, message_id: str = "", backwards: bool = False
    ) -> tuple[list[proto.Event], bool]:
        """Events after a sequence number, or before it from the newest back (0: from the end), and whether there are
        more: at most `limit`, and no more than some 4 MiB, but one at least.

        Raises:
            ConversationNotFound: there is none.
            EventsExpired: the first of them is not kept any more (OUT_OF_RANGE).
        """

    async def find(self, key: Key, message_id: str = "") -> proto.Conversation:
        """A conversation with that message, or with all that have not ended.

        Raises:
            ConversationNotFound: there is none.
        """

    async def messages(
        self, key: Key, before: int, limit: int, *, statuses: "Sequence[proto.MessageStatus.ValueType]" = ()
    ) -> Courses:
        """Messages that began before a sequence number (0: all), those that began last first, and no more than some
        4 MiB, but one at least.

        Args:
            key: of the conversation.
            before: their first events have smaller numbers.
            limit: how many.
            statuses: of those to be given; of all without one.

        Raises:
            ConversationNotFound: there is none.
            EventsExpired: some of them were deleted while they were read.
        """

    async def list(self, *, principal: str | None, agent: str, page_size: int, page_token: str) -> Page:
        """Conversations of a principal (None: of all) and an agent ("": of all).

        Raises:
            InvalidArgument: the token is none of ours.
        """

    async def unfinished(self, agent: str) -> Sequence[Key]:
        """Conversations of an agent ("": of all) with messages that have not ended."""

    async def delete(self, key: Key) -> None:
        """Deletes all that there is of a conversation; whoever held its lease can append nothing more.

        Raises:
            ConversationNotFound: there is none.
        """

    async def expire(self, agent: str, *, before_ns: int) -> Sequence[Key]:
        """Deletes an agent's conversations that have not changed since, but for those with unended messages."""

    async def trim(self, agent: str, *, max_events: int, max_bytes: int) -> int:
        """Deletes the oldest events of conversations beyond those bounds (0: none), whole ended messages at a time;
        how many."""
