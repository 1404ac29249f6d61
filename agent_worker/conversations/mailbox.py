"""One conversation while it is at hand: its messages are handled one at a time, in their order.

A state machine of callbacks: no task waits for a conversation, but for the one of a `Run`, of the author's code. What
is said here of "ends" and "begins" is put into the outbox first; whoever waits hears of it when it is on disk.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from agentruntime import errors, log
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import event_log_pb2 as wire
from agentruntime.launch import ConversationSpec

from agent_worker.admission import Slots
from agent_worker.conversations import endings
from agent_worker.conversations.log import LogClient, error_of, is_away
from agent_worker.conversations.message import Elsewhere, Message
from agent_worker.conversations.outbox import Outbox, Write
from agent_worker.conversations.run import Run
from agent_worker.conversations.slot import Slot

# That wait in one conversation; a person waits for one.
_MOST_WAITING = 100
# And together: with the message that runs, and the state, they fit a frame of the log's to whoever opens it next.
_MOST_WAITING_BYTES = 7 * 2**20
# Until it is tried again to open a conversation whose store was away.
_PAUSE_S = 0.25
# What requests call `when_busy`, by the agent's word for it.
_BUSY = {
    "queue": proto.WHEN_BUSY_QUEUE,
    "reject": proto.WHEN_BUSY_REJECT,
    "interrupt": proto.WHEN_BUSY_INTERRUPT,
}
_log = log.get("agent_worker.conversations")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the mailboxes of a worker share."""

    client: LogClient
    slots: Slots
    spec: ConversationSpec
    worker_id: str
    # Runs the author's code; its result is the last event of the message, a completion or a failure.
    handle: "Callable[[Mailbox, Run], Coroutine[Any, Any, proto.Event]]"
    # Nothing is at hand any more but what is on disk: since now it is idle.
    rests: "Callable[[Mailbox], None]"
    # It is no more.
    forget: "Callable[[Mailbox], None]"
    # Somebody had it while the log was away from this worker, which has a new lease now.
    replace: "Callable[[Mailbox, wire.Opened], None]"


class Mailbox:
    """Of one conversation, from the wish to open it until its lease is gone."""

    __slots__ = (
        "_around", "_existing", "_openers", "_opens", "_run", "_slot", "conversation_id", "error", "is_leaving",
        "messages", "outbox", "principal", "rests_since_s", "state", "state_version", "waiting",
    )  # fmt: skip

    def __init__(self, around: Surroundings, principal: str, conversation_id: str, *, existing: bool = False) -> None:
        self._around = around
        # It is not to be made, should it be deleted before it is opened.
        self._existing = existing
        self.principal = principal
        self.conversation_id = conversation_id
        self.outbox = Outbox(principal, conversation_id, around.client, away=self._reopen_later, lost=self.lose)
        # Canonical JSON; empty without one.
        self.state = b""
        self.state_version = 0
        # In their order.
        self.waiting: deque[Message] = deque()
        # All whose end is not on disk, by their ids.
        self.messages: dict[str, Message] = {}
        # When nothing runs, it is given back.
        self.is_leaving = False
        # Set once it is no more: why nothing can be posted.
        self.error: Exception | None = None
        self.rests_since_s = 0.0
        # Of the message that has begun and not ended, as far as that was decided here.
        self._run: Run | None = None
        self._slot = Slot(around.slots)
        self._opens = False
        self._openers: list[asyncio.Future[None]] = []

    @property
    def current(self) -> Message | None:
        """The message that runs."""
        return self._run.message if self._run else None

    # Opening.

    async def opened(self) -> None:
        """Returns when messages can be posted.

        Raises:
            Elsewhere: it is no more; another one may be made.
            AgentError: it cannot be opened.
        """
        while self.error is None and not self.outbox.token:
            opener: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._openers.append(opener)
            await opener
        if self.error is not None:
            raise self.error.with_traceback(None)

    def open(self) -> None:
        """Takes the lease, or takes it up again after the log was away."""
        if self._opens or self.outbox.is_open or self.error is not None or not self._around.client.is_connected:
            return
        self._opens = True
        opening = wire.OpenConversation(
            conversation_id=self.conversation_id, token=self.outbox.token, existing=self._existing
        )
        self._around.client.request(wire.LogRequest(open=opening, principal=self.principal), self._answered)

    def adopt(self, opened: wire.Opened) -> None:
        """This is its lease, and what is on disk."""
        first = not self.outbox.token
        self.outbox.resume(opened.token, opened.last_sequence)
        if first:
            self.state, self.state_version = opened.state, opened.state_version
            for index, each in enumerate(opened.messages):
                self._take_up(each, opened.last_sequence, opened.lost if index == 0 else ())
            self._tell_openers()
            self.settle()

    def suspend(self) -> None:
        """The connection is lost: what is idle is forgotten, and the lease with it; the rest waits."""
        self._opens = False
        self.outbox.suspend()
        if self.outbox.token and not self.messages and self.outbox.is_empty:
            self._vanish(Elsewhere())

    def _answered(self, reply: wire.LogReply | None) -> None:
        if reply is None:
            return  # `suspend` was called, and `open` will be
        self._opens = False
        if self.error is not None:
            if reply.HasField("opened"):
                self._release(reply.opened.token)
        elif reply.HasField("opened"):
            if self.outbox.token not in (0, reply.opened.token):
                self._around.replace(self, reply.opened)
            else:
                self.adopt(reply.opened)
        elif is_away(reply.error) and self.outbox.token:
            self._reopen_later()
        elif reply.error.reason == errors.LeaseLost.reason:
            self.lose()
        elif reply.error.reason == errors.ConversationNotFound.reason and not self.outbox.token:
            self._vanish(Elsewhere())  # whoever has something to say in it makes it anew
        else:
            self._vanish(error_of(reply.error))

    def _reopen_later(self) -> None:
        asyncio.get_running_loop().call_later(_PAUSE_S, self.open)

    def _take_up(self, open_message: wire.OpenMessage, last_sequence: int, lost: Sequence[wire.LostWorker]) -> None:
        """A message that another worker left, or that nobody has begun."""
        info = open_message.info
        message = Message(info.message_id, open_message.message)
        message.is_stored = True
        message.attempts = info.attempts
        message.first_sequence, message.before = info.first_sequence, last_sequence
        self.messages[message.message_id] = message
        begun = info.status == proto.MESSAGE_STATUS_RUNNING
        if begun and info.attempts >= endings.MOST_ATTEMPTS:
            self._end(message, endings.set_aside(message, lost))
        elif begun and self._around.spec.on_worker_lost == "report":
            self._end(message, endings.ambiguous(message, lost))
        else:
            self.waiting.append(message)

    # Messages.

    def post(
        self, message: Message, when_busy: int = proto.WHEN_BUSY_UNSPECIFIED,
        earlier: Sequence[proto.ChatMessage] = (),
    ) -> Message:  # fmt: skip
        """Takes a message in; the one of its id, if there is one that has not ended.

        Raises:
            ConversationBusy, TooManyMessages, QueueFull: it is not taken.
        """
        if known := self.messages.get(message.message_id):
            return known
        busy = self._run is not None or bool(self.waiting)
        if busy:
            self._meet(when_busy or _BUSY[self._around.spec.when_busy])
            self._check_room(message)
        self._around.slots.check()
        message_id = message.message_id
        self.messages[message_id] = message
        events = []
        if self._is_new():
            events = [proto.Event(message_id=message_id, earlier=each) for each in earlier]
        write = Write(message, events, hidden=len(events), alone=True, refused=partial(self._unknown, message))
        events.append(proto.Event(message_id=message_id, message=message.chat))
        if not busy and not self.is_leaving and self._slot.take():
            self._begin(message, write)
        else:
            write.done = partial(self._stored, message)
            self.waiting.append(message)
        self.outbox.put(write)
        return message

    def would_disturb(self, message_id: str, when_busy: int) -> bool:
        """Whether posting this message ends others, or is refused because of them."""
        busy = self._run is not None or bool(self.waiting)
        policy = when_busy or _BUSY[self._around.spec.when_busy]
        return busy and message_id not in self.messages and policy != proto.WHEN_BUSY_QUEUE

    def cancel(self, message: Message) -> None:
        """Asks for the end of a message: its handler learns of it, and has some seconds."""
        if message.is_cancelled or self.messages.get(message.message_id) is not message:
            return
        message.is_cancelled = True
        if not message.is_stored:
            return  # it is seen when it is
        if self._run is not None and message is self._run.message:
            self._run.cancel()
        elif message in self.waiting:
            self._drop_waiting(message)

    def leave(self) -> None:
        """Gives the lease back when nothing runs; what waits another worker handles."""
        self.is_leaving = True
        self.settle()

    def give_up(self) -> None:
        """The worker ends: what runs is cut, and left to another worker if the agent's messages may begin again."""
        self.is_leaving = True
        run, self._run = self._run, None
        if run is None:
            return
        run.give_up()
        message = run.message
        if message.is_cancelled or self._around.spec.on_worker_lost == "report":
            end = endings.cancelled(message) if message.is_cancelled else endings.ambiguous(message, ())
            self._end(message, end)
        else:
            interruption = proto.Event(message_id=message.message_id, interruption=proto.Interruption())
            self.outbox.put(Write(message, [interruption], done=self.settle))

    def lose(self) -> None:
        """The lease is gone, or of no use any more."""
        if self.error is None:
            if self.outbox.token:
                self._release(self.outbox.token)  # nothing else would end it, if it is not gone
            self._vanish(Elsewhere())

    def set_state(self, run: Run, state: bytes, expected_version: int | None) -> "asyncio.Future[int]":
        """Writes the state, of a run that is this one's.

        Resolves to its version when it is on disk, or with StateConflict, or why it cannot be.
        """
        result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        version = (self.state_version if expected_version is None else expected_version) + 1
        change = proto.Event(message_id=run.message.message_id, state=proto.StateChange(version=version))

        def done() -> None:
            self.state, self.state_version = state, change.state.version
            if not result.done():
                result.set_result(self.state_version)

        def refused(error: errors.AgentError | None) -> None:
            if not result.done():
                result.set_exception(error or errors.Internal("the log knows this already"))

        write = Write(run.message, [change], alone=True, state=state, done=done, refused=refused)
        write.expected_version = version - 1
        run.put(write)
        return result

    def _is_new(self) -> bool:
        return not self.outbox.sequence and self.outbox.is_empty

    def _meet(self, when_busy: int) -> None:
        """A message comes while others are there."""
        if when_busy == proto.WHEN_BUSY_REJECT:
            raise errors.ConversationBusy(
                f"a message runs in conversation '{self.conversation_id}'; send again when it has ended, or cancel it"
            )
        if when_busy == proto.WHEN_BUSY_INTERRUPT:
            for other in list(self.messages.values()):
                self.cancel(other)

    def _check_room(self, message: Message) -> None:
        """Raises TooManyMessages if it may not wait too."""
        size_bytes = message.chat.ByteSize() + sum([each.chat.ByteSize() for each in self.waiting])
        if len(self.waiting) >= _MOST_WAITING or size_bytes > _MOST_WAITING_BYTES:
            raise errors.TooManyMessages(
                f"{len(self.waiting)} messages wait in conversation '{self.conversation_id}'; "
                f"no more than {_MOST_WAITING} may, and {_MOST_WAITING_BYTES} bytes: send again when some have ended"
            )

    # What happens with them.

    def _begin(self, message: Message, write: Write) -> Run:
        """It is the one that runs from now on; its handler is called when that is on disk with the write."""
        self._run = run = Run(
            message,
            self.outbox,
            handle=partial(self._around.handle, self),
            finished=self._finish,
            cancel_grace_s=self._around.spec.cancel_grace_s,
        )
        write.events.append(run.attempt(self._around.worker_id))
        write.done = run.start
        return run

    def _finish(self, message: Message, *last: proto.Event) -> None:
        """The message that runs has ended, and the next one may run."""
        self._run = None
        self._end(message, *last)
        self._next()

    def _end(self, message: Message, *last: proto.Event, again: bool = False) -> None:
        write = Write(message, list(last), ends=True, done=partial(self._ended, message))
        write.refused = partial(self._unwritable, message, again)
        self.outbox.put(write)

    def _ended(self, message: Message) -> None:
        self.messages.pop(message.message_id, None)
        self.settle()

    def _stored(self, message: Message) -> None:
        message.is_stored = True
        if message.is_cancelled and message in self.waiting:
            self._drop_waiting(message)
        else:
            self.settle()

    def _drop_waiting(self, message: Message) -> None:
        self.waiting.remove(message)
        self._end(message, endings.cancellation(message), endings.cancelled(message))

    def _next(self) -> None:
        """Begins the next message, if one may be begun now; else the slot is free for others."""
        if self._run is not None:
            return
        if not self.waiting or not self.waiting[0].is_stored or self.is_leaving:
            self._slot.free()
            return
        self._slot.offer()
        if not self._slot.take():
            self._slot.wait(self._next)
            return
        message = self.waiting.popleft()
        write = Write(message, [])
        write.refused = self._begin(message, write).unwritable
        self.outbox.put(write)

    def settle(self) -> None:
        """Something has ended, or came to nothing: what now?"""
        if self.error is not None or not self.outbox.token:
            return
        self._next()
        if self._run is not None or not self.outbox.is_empty:
            return
        if self.is_leaving:
            self._release(self.outbox.token)
            self._vanish(Elsewhere())
        elif not self.messages:
            self._around.rests(self)

    def _release(self, token: int) -> None:
        release = wire.ReleaseConversation(conversation_id=self.conversation_id, token=token)
        self._around.client.request(wire.LogRequest(release=release, principal=self.principal), _ignore)

    # What goes wrong.

    def _unknown(self, message: Message, error: errors.AgentError | None) -> None:
        """The message's own event was refused; without an error, because the log has one of its id."""
        self.messages.pop(message.message_id, None)
        if self.error is not None:
            message.part(Elsewhere())  # the lease is gone, and it may be sent to who has it
            return
        message.is_stored = error is None
        message.part(error or Elsewhere())
        if message is self.current:
            self._run = None
        elif message in self.waiting:
            self.waiting.remove(message)
        self.settle()

    def _unwritable(self, message: Message, again: bool, error: errors.AgentError | None) -> None:
        """Its end was refused: a short failure in place of it, and if not even that, nothing."""
        if self.error is not None or error is None:
            return
        message.end = None
        if not again:
            self._end(message, endings.failed(error, message.message_id), again=True)
            return
        _log.error("the end of a message cannot be written", conversation=self.conversation_id, error=error.message)
        self.messages.pop(message.message_id, None)
        message.part(error)
        self.leave()

    def _vanish(self, error: Exception) -> None:
        """Nothing more happens here."""
        self.error = error
        run, self._run = self._run, None
        self._slot.leave(run.give_up() if run else None)
        self.outbox.drop(errors.LeaseLost("another worker may have the conversation now"))
        messages = list(self.messages.values())
        self.messages.clear()
        self.waiting.clear()
        for message in messages:
            message.part(error)
        self._tell_openers()
        self._around.forget(self)

    def _tell_openers(self) -> None:
        openers, self._openers = self._openers, []
        for opener in openers:
            if not opener.done():
                opener.set_result(None)


def _ignore(_reply: wire.LogReply | None) -> None:
    """A release is answered when it is done; nobody waits for it."""
