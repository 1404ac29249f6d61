"""A store in memory, which can be away or lose its answers; and a holder that takes note of what it is told."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.errors import AgentError, ConversationNotFound, EventsExpired, LeaseLost, StoreUnavailable

from uapi_gateway.conversations.ends import End
from uapi_gateway.conversations.store import Append, Appended, Course, Courses, Key, Lease, Page

_RUNNING, _PENDING = proto.MESSAGE_STATUS_RUNNING, proto.MESSAGE_STATUS_PENDING
_ENDS = {
    "completion": proto.MESSAGE_STATUS_COMPLETED,
    "failure": proto.MESSAGE_STATUS_FAILED,
}


@dataclass
class Kept:
    token: int = 0
    events: list[proto.Event] = field(default_factory=list)
    messages: dict[str, proto.MessageInfo] = field(default_factory=dict)
    first: int = 1

    @property
    def last(self) -> int:
        return self.events[-1].sequence if self.events else self.first - 1


class MemoryStore:
    """See `Store`."""

    def __init__(self) -> None:
        self.kept: dict[Key, Kept] = {}
        self.batches: list[int] = []
        # What comes next of these happens: "away", or "lost" (it is written, and nobody hears of it).
        self.troubles: list[str] = []
        # Cleared: appends wait.
        self.flowing = asyncio.Event()
        self.flowing.set()
        # Cleared: who wants a lease, or to delete, waits.
        self.giving = asyncio.Event()
        self.giving.set()
        self.reads = 0
        self.closed = False
        self._tokens = itertools.count(1)

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        self.closed = True

    async def acquire(
        self, key: Key, _holder: str, _now_ns: int, *, token: int = 0, existing: bool = False, to_end: bool = False
    ) -> Lease:
        self._trouble()
        await self.giving.wait()
        if existing or to_end:
            self._get(key)
        kept = self.kept.setdefault(key, Kept())
        if not token or token != kept.token:
            kept.token = next(self._tokens)
        said = {event.message_id: event.message for event in kept.events if event.HasField("message")}
        unended = tuple(
            (info, said[info.message_id]) for info in kept.messages.values() if info.status in (_RUNNING, _PENDING)
        )
        asked = {event.message_id for event in kept.events if event.HasField("cancellation")}
        cancelled = frozenset(info.message_id for info, _ in unended if info.message_id in asked)
        return Lease(kept.token, kept.last, b"", 0, unended, cancelled)

    async def append(self, batch: Sequence[Append], now_ns: int) -> list[Appended | AgentError]:
        await self.flowing.wait()
        trouble = self.troubles.pop(0) if self.troubles else ""
        if trouble == "away":
            raise StoreUnavailable("away")
        if trouble == "broken":
            raise ValueError("broken")
        self.batches.append(len(batch))
        results = [self._append(append, now_ns) for append in batch]
        if trouble == "lost":
            raise StoreUnavailable("lost")
        return results

    def _append(self, append: Append, now_ns: int) -> Appended | AgentError:
        kept = self.kept.get(append.key)
        if kept is None or kept.token != append.token:
            return LeaseLost("another token")
        if append.after is not None and kept.last == append.after + len(append.events):
            return Appended(kept.last)
        for event in append.events:
            if event.HasField("message") and (known := kept.messages.get(event.message_id)):
                return Appended(kept.last, known)
        for event in append.events:
            written = proto.Event()
            written.CopyFrom(event)
            written.sequence, written.token = kept.last + 1, append.token
            written.time.FromNanoseconds(now_ns)
            kept.events.append(written)
            self._note(kept, written)
        return Appended(kept.last)

    def _note(self, kept: Kept, event: proto.Event) -> None:
        kind = event.WhichOneof("content") or ""
        if kind == "message":
            kept.messages[event.message_id] = proto.MessageInfo(
                message_id=event.message_id, status=_PENDING, first_sequence=event.sequence
            )
        elif kind == "attempt":
            kept.messages[event.message_id].status = _RUNNING
            kept.messages[event.message_id].attempts += 1
        elif kind in _ENDS:
            info = kept.messages[event.message_id]
            info.last_sequence = event.sequence
            cancelled = event.failure.code == 1
            info.status = proto.MESSAGE_STATUS_CANCELLED if cancelled else _ENDS[kind]

    async def events(
        self, key: Key, after: int, limit: int, *, message_id: str = "", backwards: bool = False
    ) -> tuple[list[proto.Event], bool]:
        self.reads += 1
        await asyncio.sleep(0)
        kept = self._get(key)
        if after + 1 < kept.first and not backwards:
            raise EventsExpired("not kept any more")
        found = [e for e in kept.events if message_id in ("", e.message_id)]
        if backwards:
            found = [e for e in reversed(found) if not after or e.sequence < after]
        else:
            found = [e for e in found if e.sequence > after]
        return found[:limit], len(found) > limit

    async def find(self, key: Key, message_id: str = "") -> proto.Conversation:
        kept = self._get(key)
        messages = [
            info
            for info in kept.messages.values()
            if (info.message_id == message_id if message_id else info.status in (_RUNNING, _PENDING))
        ]
        return proto.Conversation(
            conversation_id=key.conversation_id, agent=key.agent, principal=key.principal,
            last_sequence=kept.last, messages=messages,
        )  # fmt: skip

    async def messages(
        self, key: Key, before: int, limit: int, *, statuses: "Sequence[proto.MessageStatus.ValueType]" = ()
    ) -> Courses:
        kept = self._get(key)
        events = {event.sequence: event for event in kept.events}
        found = [
            Course(info, events[info.first_sequence], events.get(info.last_sequence))
            for info in sorted(kept.messages.values(), key=lambda info: -info.first_sequence)
            if (not before or info.first_sequence < before) and (not statuses or info.status in statuses)
        ]
        return Courses(tuple(found[:limit]), len(found))

    async def list(self, *, principal: str | None, agent: str, page_size: int, page_token: str) -> Page:
        found = [
            await self.find(key)
            for key in self.kept
            if principal in (None, key.principal) and agent in ("", key.agent)
        ]
        return Page(tuple(found[:page_size]), page_token)

    async def unfinished(self, agent: str) -> Sequence[Key]:
        self._trouble()
        return [
            key
            for key, kept in self.kept.items()
            if agent in ("", key.agent)
            and any(info.status in (_RUNNING, _PENDING) for info in kept.messages.values())
        ]

    async def delete(self, key: Key) -> None:
        self._trouble()
        await self.giving.wait()
        self._get(key)
        del self.kept[key]

    async def expire(self, agent: str, *, before_ns: int) -> Sequence[Key]:
        unfinished = await self.unfinished(agent)
        gone = [
            key
            for key, kept in self.kept.items()
            if key.agent == agent and key not in unfinished
            and kept.events and kept.events[-1].time.ToNanoseconds() < before_ns
        ]  # fmt: skip
        for key in gone:
            del self.kept[key]
        return gone

    async def trim(self, agent: str, *, max_events: int, max_bytes: int) -> int:
        self._trouble()
        removed = 0
        for key, kept in self.kept.items():
            if key.agent == agent and max_events and (more := len(kept.events) - max_events) > 0:
                del kept.events[:more]
                kept.first += more
                removed += more
        return removed

    def _get(self, key: Key) -> Kept:
        if key not in self.kept:
            raise ConversationNotFound(key.conversation_id)
        return self.kept[key]

    def _trouble(self) -> None:
        if self.troubles and self.troubles[0] == "away":
            self.troubles.pop(0)
            raise StoreUnavailable("away")


class Holding:
    """A holder."""

    def __init__(self, name: str = "a-01") -> None:
        self.name, self.end = name, End(name)
        self.ended = False
        self.told: list[tuple[str, str]] = []

    def wanted(self, key: Key) -> None:
        self.told.append(("wanted", key.conversation_id))

    def cancelled(self, key: Key, message_id: str) -> None:
        self.told.append(("cancelled", message_id))

    def lost(self, key: Key) -> None:
        self.told.append(("lost", key.conversation_id))
