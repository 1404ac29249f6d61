"""The conversations that a worker has at hand."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import event_log_pb2 as wire
from agentruntime.launch import ConversationSpec

from agent_worker.admission import Slots
from agent_worker.conversations.log import LogClient
from agent_worker.conversations.mailbox import Mailbox, Surroundings
from agent_worker.conversations.message import Elsewhere
from agent_worker.conversations.run import Run

# Between looks at which conversations are idle.
_SWEEP_S = 1.0
# For what is to be said of messages that are cut.
_LAST_WORDS_S = 0.2
Key = tuple[str, str]


class Mailboxes:
    """Of one worker; told by the log's client what nobody asked for.

    Args:
        client: of the log.
        slots: that messages take while they are handled.
        spec: how conversations are held.
        worker_id: this worker's.
        handle: as of `Surroundings`.
    """

    def __init__(
        self,
        client: LogClient,
        slots: Slots,
        spec: ConversationSpec,
        worker_id: str,
        handle: "Callable[[Mailbox, Run], Coroutine[Any, Any, proto.Event]]",
    ) -> None:
        self._client = client
        self._idle_s = spec.idle_s
        self._mailboxes: dict[Key, Mailbox] = {}
        # Those that are idle, since longest first.
        self._resting: dict[Key, Mailbox] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._drains = False
        # While it drains.
        self._empty = asyncio.Event()
        self._around = Surroundings(
            client, slots, spec, worker_id, handle, rests=self._rest, forget=self._forget, replace=self._replace
        )
        client.listener = self

    def find(self, principal: str, conversation_id: str) -> Mailbox | None:
        """A conversation that is at hand, or about to be."""
        return self._mailboxes.get((principal, conversation_id))

    async def at(self, principal: str, conversation_id: str) -> Mailbox:
        """A conversation, into which messages can be posted until the caller next waits.

        Raises:
            WorkerDraining: the worker opens none any more.
            Unavailable: there is no log.
            AgentError: it cannot be opened.
        """
        key = principal, conversation_id
        while True:
            mailbox = self._mailboxes.get(key)
            if mailbox is None:
                self._client.check()
                if self._drains:
                    raise errors.WorkerDraining(
                        "the worker is about to end and has not taken this message; send it again"
                    )
                mailbox = self._mailboxes[key] = Mailbox(self._around, principal, conversation_id)
                mailbox.open()
            if not mailbox.outbox.token:
                try:
                    await mailbox.opened()
                except Elsewhere:
                    continue
            if mailbox.error is None:
                self._resting.pop(key, None)
                return mailbox

    def take_up(self, principal: str, conversation_id: str) -> None:
        """Has a conversation go on with what is unfinished, if nobody deletes it meanwhile."""
        key = principal, conversation_id
        if key not in self._mailboxes and not self._drains:
            mailbox = self._mailboxes[key] = Mailbox(self._around, principal, conversation_id, existing=True)
            mailbox.open()

    async def drain(self, grace_s: float, over: asyncio.Event) -> None:
        """Begins no message any more; lets those that run end for `grace_s` seconds, or until `over` is set.

        What is left then is cut, and goes on at another worker once this one is closed.
        """
        self._drains = True
        self._client.end_watches(errors.WorkerDraining("the worker is about to end; watch again after what was seen"))
        for mailbox in list(self._mailboxes.values()):
            if mailbox.outbox.token:
                mailbox.leave()
            else:
                mailbox.lose()
        if self._mailboxes:
            either = [asyncio.create_task(self._empty.wait()), asyncio.create_task(over.wait())]
            await asyncio.wait(either, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
            for waiting in either:
                waiting.cancel()
        for mailbox in list(self._mailboxes.values()):
            mailbox.give_up()
        if self._mailboxes:
            with suppress(TimeoutError):  # the log is away: it will see that the worker is gone
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._empty.wait()
        for mailbox in list(self._mailboxes.values()):
            mailbox.lose()

    def close(self) -> None:
        """Ends the connection to the log, and with it the leases that are left; after the last call."""
        if self._sweep is not None:
            self._sweep.cancel()
        self._client.close()

    # From the log.

    def connected(self) -> None:
        for mailbox in list(self._mailboxes.values()):
            mailbox.open()

    def disconnected(self) -> None:
        for mailbox in list(self._mailboxes.values()):
            mailbox.suspend()

    def told(self, reply: wire.LogReply) -> None:
        kind = reply.WhichOneof("result")
        if kind == "cancelled":
            mailbox = self._of(reply.cancelled.conversation)
            message = mailbox and mailbox.messages.get(reply.cancelled.message_id)
            if mailbox and message:
                mailbox.cancel(message)
        elif kind == "wanted" and (mailbox := self._of(reply.wanted)):
            mailbox.leave()
        elif kind == "lost" and (mailbox := self._of(reply.lost)):
            mailbox.lose()

    def _of(self, key: wire.ConversationKey) -> Mailbox | None:
        return self._mailboxes.get((key.principal, key.conversation_id))

    # From mailboxes.

    def _rest(self, mailbox: Mailbox) -> None:
        loop = asyncio.get_running_loop()
        mailbox.rests_since_s = loop.time()
        key = mailbox.principal, mailbox.conversation_id
        self._resting.pop(key, None)
        self._resting[key] = mailbox
        if self._sweep is None:
            self._sweep = loop.call_later(min(_SWEEP_S, self._idle_s), self._release_idle)

    def _release_idle(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = None
        due_s = loop.time() - self._idle_s
        while self._resting:
            key, mailbox = next(iter(self._resting.items()))
            if mailbox.rests_since_s > due_s:
                self._sweep = loop.call_later(min(_SWEEP_S, self._idle_s), self._release_idle)
                return
            del self._resting[key]
            mailbox.leave()

    def _forget(self, mailbox: Mailbox) -> None:
        key = mailbox.principal, mailbox.conversation_id
        self._resting.pop(key, None)
        if self._mailboxes.get(key) is mailbox:
            del self._mailboxes[key]
        if self._drains and not self._mailboxes:
            self._empty.set()

    def _replace(self, mailbox: Mailbox, opened: wire.Opened) -> None:
        after = Mailbox(self._around, mailbox.principal, mailbox.conversation_id)
        self._mailboxes[mailbox.principal, mailbox.conversation_id] = after
        mailbox.lose()
        if self._drains:
            after.leave()
        after.adopt(opened)
