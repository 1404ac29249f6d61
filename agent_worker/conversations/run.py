"""The run of one message: what its handler says is written, and how it is made to end before it is done.

When it begins, and what comes after it, its mailbox says.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto

from agent_worker.conversations import endings
from agent_worker.conversations.message import Message
from agent_worker.conversations.outbox import Outbox, Write


class Run:
    """Of a message, from its attempt until its handler has ended, or is given up.

    Args:
        message: the one.
        outbox: of its conversation.
        handle: runs the author's code; its result is the last event, a completion or a failure.
        finished: gets the message and its last events; not called for a run that is given up.
        cancel_grace_s: until a handler that is to end is cut, and again if it takes no notice.
    """

    __slots__ = (
        "_broken",
        "_finished",
        "_grace_s",
        "_handle",
        "_is_over",
        "_outbox",
        "_task",
        "cancelled",
        "message",
    )

    def __init__(
        self,
        message: Message,
        outbox: Outbox,
        *,
        handle: "Callable[[Run], Coroutine[Any, Any, proto.Event]]",
        finished: Callable[..., None],
        cancel_grace_s: float,
    ) -> None:
        self.message = message
        # What the handler sees of the wish that it ends.
        self.cancelled = asyncio.Event()
        self._outbox = outbox
        self._handle = handle
        self._finished = finished
        self._grace_s = cancel_grace_s
        # Of the handler; None before that is called.
        self._task: asyncio.Task[None] | None = None
        # Why what the handler says cannot be written, until that has ended.
        self._broken: errors.AgentError | None = None
        self._is_over = False

    def attempt(self, worker_id: str) -> proto.Event:
        """The event by which it begins; `start` it when that is on disk."""
        self.message.attempts += 1
        attempt = proto.Attempt(number=self.message.attempts, worker_id=worker_id)
        return proto.Event(message_id=self.message.message_id, attempt=attempt)

    def start(self) -> None:
        """Calls the handler, unless the end was asked for meanwhile."""
        message = self.message
        message.is_stored = True
        if self._is_over:
            return
        if message.is_cancelled:
            self._finish(endings.cancellation(message), endings.cancelled(message))
            return
        # Nobody sent here what another worker left.
        context = message.context or Context()
        self._task = asyncio.get_running_loop().create_task(self._handled(), context=context)

    def say(self, event: proto.Event) -> None:
        """Writes an event of its handler's."""
        self.put(Write(self.message, [event], refused=self.unwritable))

    def put(self, write: Write) -> None:
        """Writes for its handler; what that says after the message has ended, nobody hears."""
        if not self._is_over and self._broken is None:
            self._outbox.put(write)
        elif write.refused:
            write.refused(errors.FailedPrecondition("the message has ended; nothing more can be said of it"))

    def cancel(self) -> None:
        """The message is cancelled: its handler learns of it, and has some seconds."""
        if self._task is None:
            return  # it is seen when it starts
        # At once: whoever takes it up after this worker's death does not begin it again.
        self._outbox.put(Write(self.message, [endings.cancellation(self.message)], refused=self.unwritable))
        self.cancelled.set()
        self._cut_later()

    def give_up(self) -> "asyncio.Task[None] | None":
        """Cuts the handler, whatever that may still say; gives its task, if there is one, which may take its time."""
        self._is_over = True
        self.cancelled.set()
        if self._task is not None:
            self._task.cancel()
        return self._task

    def unwritable(self, error: errors.AgentError | None) -> None:
        """What happens in it cannot be written: it fails."""
        if self._is_over or error is None:
            return
        if self._task is None:
            self._finish(endings.failed(error, self.message.message_id))
        elif self._broken is None:
            # It is the current one until its handler has ended: no other runs beside it.
            self._broken = error
            self._task.cancel()
            self._cut_later()

    async def _handled(self) -> None:
        try:
            last = await self._handle(self)
        except asyncio.CancelledError:
            last = endings.cancelled(self.message)
        # Here, not in a callback of the task: with the last piece of the reply it is one write.
        if not self._is_over:
            self._finish(endings.failed(self._broken, self.message.message_id) if self._broken else last)

    def _finish(self, *last: proto.Event) -> None:
        self._is_over = True
        self._task = None
        self._finished(self.message, *last)

    def _cut_later(self) -> None:
        asyncio.get_running_loop().call_later(self._grace_s, self._cut)

    def _cut(self) -> None:
        if not self._is_over and self._task is not None:
            self._task.cancel()
            self._cut_later()
