"""One message while it is at hand: what has happened with it so far, for whoever waits for more."""

import asyncio
from collections.abc import AsyncGenerator
from contextvars import Context

from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto


class Elsewhere(Exception):
    """What becomes of it is not told here: it has ended long ago, or the conversation is given back, or lost."""


class Message:
    """Of one mailbox, until its end is on disk.

    Args:
        message_id: its id.
        chat: what was said.
        context: variables of whoever sent it, for whom its handler acts: the trace, the chain of calls.
    """

    __slots__ = (
        "_ends", "_error", "_news", "attempts", "before", "chat", "context", "end", "events", "first_sequence",
        "is_cancelled", "is_stored", "message_id",
    )  # fmt: skip

    def __init__(self, message_id: str, chat: proto.ChatMessage, context: Context | None = None) -> None:
        self.message_id = message_id
        self.chat = chat
        self.context = context
        # That were begun, this worker's own with them.
        self.attempts = 0
        # Of its own event; 0 until that is on disk.
        self.first_sequence = 0
        # Its events up to this one are on the log only: another worker's.
        self.before = 0
        # Those that are on disk, since.
        self.events: list[proto.Event] = []
        # The last of them, once it has ended.
        self.end: proto.Event | None = None
        self.is_stored = False
        # Its end was asked for.
        self.is_cancelled = False
        self._error: Exception | None = None
        # Who waits for more of it, and who for its end alone.
        self._news: list[asyncio.Future[None]] = []
        self._ends: list[asyncio.Future[None]] = []

    def publish(self, event: proto.Event) -> None:
        """An event of its is on disk."""
        self.events.append(event)
        if not self.first_sequence:
            self.first_sequence = event.sequence
        self._tell()

    def part(self, error: Exception) -> None:
        """Nothing more is told of it here: it was refused, or is `Elsewhere`."""
        if self._error is None and self.end is None:
            self._error = error
            self._tell()

    async def ended(self) -> proto.Event:
        """Its last event.

        Raises:
            AgentError: it was refused.
            Elsewhere: the log knows.
        """
        while self.end is None:
            await self._more(self._ends)
        return self.end

    async def follow(self) -> AsyncGenerator[proto.Event, None]:
        """Its events, but for those `before`. Raises as `ended`."""
        told = 0
        while True:
            while told < len(self.events):
                told += 1
                yield self.events[told - 1]
            if self.end is not None:
                return
            await self._more(self._news)

    async def _more(self, waiting: list[asyncio.Future[None]]) -> None:
        if self._error is not None:
            raise self._error.with_traceback(None)
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(news)
        await news

    def _tell(self) -> None:
        if self._news:
            _wake(self._news)
        if self._ends and (self.end is not None or self._error is not None):
            _wake(self._ends)


def _wake(waiting: list[asyncio.Future[None]]) -> None:
    for each in waiting:
        if not each.done():
            each.set_result(None)
    waiting.clear()
