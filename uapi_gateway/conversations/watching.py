"""Tells watchers of a conversation what was written, each as fast as it takes it.

A watcher that falls behind has nothing kept for it: it reads from the store what it has missed.
"""

from asyncio import Event as Flag
from collections import deque
from collections.abc import Sequence

from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.errors import AgentError

from uapi_gateway.conversations.store import Append, Key

# Kept for a watcher; beyond, it reads from the store.
_MOST_EVENTS = 256
_MOST_BYTES = 2**20


class Watcher:
    """Somebody who wants to hear of a conversation, or of one message of it."""

    def __init__(self, message_id: str) -> None:
        self.message_id = message_id
        self._events: deque[proto.Event] = deque()
        self._bytes = 0
        self._behind = False
        self._error: AgentError | None = None
        self._news = Flag()

    def push(self, event: proto.Event, size_bytes: int) -> None:
        if self._behind:
            return
        if self._events and (len(self._events) >= _MOST_EVENTS or self._bytes + size_bytes > _MOST_BYTES):
            self._events.clear()
            self._behind = True
        else:
            self._events.append(event)
            self._bytes += size_bytes
        self._news.set()

    def fail(self, error: AgentError) -> None:
        self._error = error
        self._news.set()

    async def take(self) -> Sequence[proto.Event] | None:
        """What was written since; None if that is to be read from the store. Waits for something.

        Raises:
            AgentError: there will be nothing more.
        """
        await self._news.wait()
        self._news.clear()
        events, self._bytes = list(self._events), 0
        self._events.clear()
        behind, self._behind = self._behind, False
        if self._error is not None:
            if not events and not behind:
                raise self._error
            self._news.set()
        return None if behind else events


class Watchers:
    """All of them."""

    def __init__(self) -> None:
        self._watchers: dict[Key, set[Watcher]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._watchers.values()))

    def add(self, key: Key, watcher: Watcher) -> None:
        self._watchers.setdefault(key, set()).add(watcher)

    def remove(self, key: Key, watcher: Watcher) -> None:
        if watchers := self._watchers.get(key):
            watchers.discard(watcher)
            if not watchers:
                del self._watchers[key]

    def publish(self, append: Append, last_sequence: int, state_version: int, now_ns: int) -> None:
        """Tells those who watch the conversation.

        Args:
            append: what was written.
            last_sequence: of the last of its events.
            state_version: after it; the events need not say it, like all that the store adds.
            now_ns: the time of its events.
        """
        watchers = self._watchers.get(append.key)
        if watchers is None:
            return
        for sequence, written in enumerate(append.events, last_sequence - len(append.events) + 1):
            event = proto.Event()
            event.CopyFrom(written)
            event.sequence, event.token = sequence, append.token
            event.time.FromNanoseconds(now_ns)
            if event.HasField("state"):
                event.state.version = state_version
            size_bytes = event.ByteSize()
            for watcher in watchers:
                if watcher.message_id in ("", event.message_id):
                    watcher.push(event, size_bytes)

    def fail(self, key: Key, error: AgentError) -> None:
        """Ends all of a conversation."""
        for watcher in self._watchers.get(key, ()):
            watcher.fail(error)
