"""The event log: who may write into a conversation, what is written, and who hears of it.

In the gateway's event loop, over a store. Workers come to it by the door (`door.py`), everything else in the gateway
by the methods of `EventLog`.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from agentruntime import log
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import event_log_pb2 as wire
from agentruntime.errors import (
    AgentError,
    Cancelled,
    ConversationNotFound,
    InvalidArgument,
    LeaseLost,
    MessageNotFound,
    StoreUnavailable,
)

from uapi_gateway.conversations.ends import End
from uapi_gateway.conversations.leases import Done, Hold, Holder, Leases
from uapi_gateway.conversations.store import Append, Appended, Courses, Key, Lease, Page, Store
from uapi_gateway.conversations.watching import Watcher, Watchers
from uapi_gateway.conversations.writing import Figures, Writer

_log = log.get("uapi_gateway.conversations")
ENDED = frozenset((proto.MESSAGE_STATUS_COMPLETED, proto.MESSAGE_STATUS_FAILED, proto.MESSAGE_STATUS_CANCELLED))
# How long somebody waits for a store that cannot be reached, or is not open yet.
_PATIENCE_S = 10.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 2.0
# Whoever had a conversation before the gateway started has so long to come back to it.
RETURN_S = 1.0
# Of the workers that a message has ended.
_MOST_LOST = 8
# Events read for a watcher at a time; conversations or events that are given at a time.
_PAGE, _LARGEST_PAGE = 256, 1000
_CANCELLED = 1  # google.rpc.Code
_Answer = TypeVar("_Answer")


class Own:
    """The gateway, where it writes itself. It gives back at once what it holds."""

    name = "gateway"
    end = End("")
    ended = False

    def wanted(self, key: Key) -> None:
        pass

    def cancelled(self, key: Key, message_id: str) -> None:
        pass

    def lost(self, key: Key) -> None:
        pass


class EventLog:
    """All conversations of the platform.

    Args:
        opened: opens the store; tried again while it raises StoreUnavailable.
        now_ns: the time, Unix.
    """

    def __init__(self, opened: Callable[[], Awaitable[Store]], *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._open = opened
        self._now_ns = now_ns
        self._store: Store | None = None
        self._ready = asyncio.Event()
        # Set as soon as the store is open, or has said why it cannot be.
        self._heard = asyncio.Event()
        self._trouble = ""
        # Looks again and again for a store that went away while nothing was to be written.
        self._look: asyncio.Task[None] | None = None
        self._leases = Leases()
        self._watchers = Watchers()
        self._own = Own()
        self._writer = Writer(self._written, self._take_away, now_ns=now_ns)
        # Workers that ended while a message of the conversation ran, which has not ended, the oldest first.
        self._lost: dict[Key, tuple[str, list[End]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # Told of conversations with messages that have not ended, which nobody has.
        self.left: list[Callable[[Key], None]] = []

    @property
    def figures(self) -> Figures:
        """As they are now."""
        return replace(self._writer.figures, open=len(self._leases), watchers=len(self._watchers))

    def running(self) -> Counter[str]:
        """In how many conversations of each agent a message runs at a worker."""
        return self._leases.running()

    @property
    def trouble(self) -> str:
        """Why the store cannot be reached now; "" if it can, as far as is known."""
        return self._trouble or self._writer.trouble

    async def heard(self, within_s: float) -> None:
        """Waits until it is known whether the store can be opened, for so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._heard.wait()

    async def run(self) -> None:
        """Opens the store and writes, until cancelled."""
        store = await self._patiently(self._open, "the conversations cannot be opened; tried again")
        unfinished = await self._patiently(partial(store.unfinished, ""), "the conversations cannot be read")
        for key in unfinished:
            self._leases.reserve(key)
        self._store = store
        self._ready.set()
        self._heard.set()
        for key in unfinished:
            self._tell_left(key)
        asyncio.get_running_loop().call_later(RETURN_S, self._unreserve, unfinished)
        try:
            await self._writer.run(store)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await store.close()

    async def _patiently(self, ask: Callable[[], Awaitable[_Answer]], what: str) -> _Answer:
        """Until the store can be reached."""
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                answer = await ask()
            except StoreUnavailable as error:
                _log.error(what, error=error.message)
                self._trouble = error.message
                self._heard.set()
            else:
                self._trouble = ""
                return answer
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    async def _opened(self) -> Store:
        if self._store is None:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await self._ready.wait()
            except TimeoutError:
                why = self._trouble or "conversations are not open yet"
                raise StoreUnavailable(f"{why}; try again") from None
        assert self._store is not None
        return self._store

    # What holders do.

    async def open(self, key: Key, holder: Holder, token: int = 0, *, existing: bool = False) -> tuple[Hold, Lease]:
        """The lease of a conversation, which is made if there is none; waits while another has it.

        Args:
            key: of the conversation.
            holder: who is to have it.
            token: of the lease that the holder had before its connection was lost; 0 for none.
            existing: none is made.

        Raises:
            ConversationNotFound: there is none, with `token` or `existing`.
            LeaseLost: there is a token, and somebody else has the conversation by now.
            StoreUnavailable: the store was away for too long.
        """
        held = self._leases.get(key)
        if held is not None and held.holder is holder:
            return held, await self._acquire(key, holder, held.token)
        lease = await self._take(key, holder, token, existing)
        if lease.cancelled and lease.token != token:
            # Whoever was to end them has gone, and this one is not to begin them again.
            with suppress(ConversationNotFound):  # deleted by now; it may be made anew
                await self._end(key, lease.cancelled)
            lease = await self._take(key, holder, token, existing)
        hold = self._leases.enter(key, holder, lease)
        if holder.ended:
            self.release(hold)
        return hold, lease

    async def _take(self, key: Key, holder: Holder, token: int, existing: bool) -> Lease:
        """The lease is this one's to `enter`, or to `give_up`."""
        if not token:
            await self._leases.take(key)
        elif not self._leases.claim(key):
            raise LeaseLost(f"another worker has conversation '{key.conversation_id}' by now")
        try:
            return await self._acquire(key, holder, token, existing=existing)
        except BaseException:
            self._leases.give_up(key)
            raise

    async def _acquire(
        self, key: Key, holder: Holder, token: int, *, existing: bool = False, to_end: bool = False
    ) -> Lease:
        store = await self._opened()
        until_s, delay_s = time.monotonic() + _PATIENCE_S, _FIRST_DELAY_S
        while True:
            try:
                return await store.acquire(
                    key, holder.name, self._now_ns(), token=token, existing=existing, to_end=to_end
                )
            except StoreUnavailable as error:
                if time.monotonic() + delay_s > until_s:
                    self._look_for(store, error)
                    raise
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    def _look_for(self, store: Store, error: StoreUnavailable) -> None:
        """Knows of the trouble, until the store is there again."""
        if self._look is None or self._look.done():
            self._trouble = error.message
            self._look = self._start(self._found(store))

    async def _found(self, store: Store) -> None:
        look = partial(store.list, principal="", agent="", page_size=1, page_token="")
        await self._patiently(look, "the conversations cannot be read")

    def append(self, hold: Hold, append: Append, done: Done) -> None:
        """Has events written; `done` is called when they are on disk, or never will be."""
        self._writer.add(hold, append, done)

    def release(self, hold: Hold, done: Callable[[], None] | None = None) -> None:
        """Gives a lease back, once all that it has to write is written."""
        hold.over = True
        hold.drained.append(partial(self._free, hold))
        if done is not None:
            hold.drained.append(done)
        self._writer.settle(hold)

    def lost(self, key: Key, message_id: str) -> Sequence[wire.LostWorker]:
        """What is known by now of the workers that ended while they handled that message, the oldest first."""
        of, ends = self._lost.get(key, ("", ()))
        return [end.worker for end in ends] if of == message_id else ()

    def held(self, key: Key) -> bool:
        """Whether somebody has it."""
        return self._leases.get(key) is not None

    def _free(self, hold: Hold) -> None:
        if self._leases.get(hold.key) is not hold:
            return
        of, ends = self._lost.pop(hold.key, ("", []))
        if hold.holder.ended and hold.running:
            ends = [*(ends if of == hold.running else ()), hold.holder.end][-_MOST_LOST:]
            self._lost[hold.key] = hold.running, ends
        elif of in hold.unended:
            self._lost[hold.key] = of, ends
        if cancelled := [message_id for message_id in hold.unended if message_id in hold.cancelled]:
            # It was asked for, and whoever was told has gone.
            self._leases.seize(hold.key)
            self._start(self._end(hold.key, cancelled))
            return
        self._leases.give_up(hold.key)
        if hold.unended:
            self._tell_left(hold.key)

    def _take_away(self, hold: Hold) -> None:
        """From a holder whose token is not the latest, or of whom it is not known what is on disk."""
        if self._leases.get(hold.key) is hold:
            self._leases.seize(hold.key)
            self._writer.drop(hold)
            hold.holder.lost(hold.key)
            self._leases.give_up(hold.key)
            if hold.unended:
                self._tell_left(hold.key)

    def _unreserve(self, keys: Sequence[Key]) -> None:
        for key in keys:
            self._leases.unreserve(key)

    def _tell_left(self, key: Key) -> None:
        for tell in self.left:
            tell(key)

    def _written(self, hold: Hold, append: Append, now_ns: int) -> None:
        self._watchers.publish(append, hold.last_sequence, hold.state_version, now_ns)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # What everybody may do.

    async def find(self, key: Key, message_id: str = "") -> proto.Conversation:
        """A conversation with that message, or with all that have not ended.

        Raises:
            ConversationNotFound: there is none.
            StoreUnavailable: the store cannot be reached.
        """
        return await (await self._opened()).find(key, message_id)

    async def list(self, principal: str | None, agent: str, page_size: int = 0, page_token: str = "") -> Page:
        """Conversations of a principal (None: of all) and an agent ("": of all), those that changed last first.

        Raises:
            InvalidArgument: the size is negative, or the token none of ours.
            StoreUnavailable: the store cannot be reached.
        """
        if page_size < 0:
            raise InvalidArgument(f"page_size is {page_size}; it is 1 at least, or 0 for as many as there may be")
        store = await self._opened()
        return await store.list(
            principal=principal,
            agent=agent,
            page_size=min(page_size or _LARGEST_PAGE, _LARGEST_PAGE),
            page_token=page_token,
        )

    async def messages(
        self, key: Key, before: int, limit: int, *, statuses: "Sequence[proto.MessageStatus.ValueType]" = ()
    ) -> Courses:
        """Messages that began before a sequence number, each with its first and its last event, the newest first.

        Raises:
            ConversationNotFound: there is none.
            EventsExpired: some of them were deleted while they were read.
            StoreUnavailable: the store cannot be reached.
        """
        return await (await self._opened()).messages(key, before, limit, statuses=statuses)

    async def read(
        self, key: Key, after: int = 0, limit: int = 0, *, message_id: str = "", backwards: bool = False
    ) -> tuple[Sequence[proto.Event], bool]:
        """Events after a sequence number, or before it from the newest back, and whether there are more.

        Raises:
            ConversationNotFound: there is none.
            EventsExpired: the first of them is not kept any more.
            StoreUnavailable: the store cannot be reached.
        """
        store = await self._opened()
        limit = min(limit or _LARGEST_PAGE, _LARGEST_PAGE)
        return await store.events(key, after, limit, message_id=message_id, backwards=backwards)

    async def watch(
        self, key: Key, after: int = 0, *, message_id: str = "", follow: bool = False
    ) -> AsyncGenerator[proto.Event, None]:
        """The events after a sequence number, without a gap and in order.

        Args:
            key: of the conversation.
            after: the first is the one after it; 0 for all.
            message_id: only those of one message; with `follow` it ends with the message.
            follow: also those to come.

        Raises:
            ConversationNotFound: there is none, or none any more.
            MessageNotFound: what comes of a message is wanted, and the conversation has none of that id.
            EventsExpired: the next event is not kept any more.
            StoreUnavailable: the store cannot be reached.
        """
        async with aclosing(self.pages(key, after, message_id=message_id, follow=follow)) as pages:
            async for page in pages:
                for event in page:
                    yield event

    async def pages(
        self, key: Key, after: int = 0, *, message_id: str = "", follow: bool = False
    ) -> AsyncGenerator[Sequence[proto.Event], None]:
        """`watch`, several events at a time."""
        store = await self._opened()
        watcher = Watcher(message_id)
        # First of all, so that what is written while the store is read is not missed.
        self._watchers.add(key, watcher)
        try:
            behind = True
            while True:
                if behind:
                    more = True
                    while more:
                        page, more = await store.events(key, after, _PAGE, message_id=message_id)
                        if page:
                            after = page[-1].sequence
                            yield page
                            if message_id and ends(page[-1]):
                                return
                    if not follow or await self._over(store, key, message_id, after):
                        return
                news = await watcher.take()
                behind = news is None
                if page := [event for event in news or () if event.sequence > after]:
                    after = page[-1].sequence
                    yield page
                    if message_id and ends(page[-1]):
                        return
        finally:
            self._watchers.remove(key, watcher)

    async def _over(self, store: Store, key: Key, message_id: str, after: int) -> bool:
        """Whether that message has ended, and its end is not after that sequence number.

        Raises:
            MessageNotFound: there is none, so that nothing can come of it.
        """
        return bool(message_id) and 0 < wanted(await store.find(key, message_id), message_id).last_sequence <= after

    async def cancel(self, key: Key, message_id: str = "") -> proto.MessageStatus.ValueType:
        """Asks for the end of a message, or of the one that runs; its status once it has ended, or before that.

        Raises:
            ConversationNotFound: there is none.
            MessageNotFound: the conversation has none of that id, or none runs.
            StoreUnavailable: the store cannot be reached.
        """
        found = wanted(await self.find(key, message_id), message_id)
        if found.status in ENDED:
            return found.status
        hold = await self._leases.settled(key)
        if hold is None:
            await self._leases.take(key)
            await self._end(key, [found.message_id])
            return proto.MESSAGE_STATUS_CANCELLED
        # Also of one that is on disk and that the hold has not heard of yet.
        hold.cancelled.add(found.message_id)
        hold.holder.cancelled(key, found.message_id)
        return found.status

    async def _end(self, key: Key, message_ids: Collection[str]) -> None:
        """Ends messages of a conversation that nobody else has, as cancelled; it was `take`n."""
        try:
            lease = await self._acquire(key, self._own, 0, to_end=True)
        except BaseException:
            self._leases.give_up(key)
            self._tell_left(key)
            raise
        hold = self._leases.enter(key, self._own, lease)
        events = [
            event
            for info, _ in lease.messages
            if info.message_id in message_ids
            for event in (
                proto.Event(message_id=info.message_id, cancellation=proto.Cancellation()),
                proto.Event(message_id=info.message_id, failure=_cancelled()),
            )
        ]
        if events:
            self._writer.add(hold, Append(key, lease.token, tuple(events)), _ignore)
        # Not a future: whoever waits for it may have hung up by then.
        over = asyncio.Event()
        self.release(hold, over.set)
        await over.wait()

    async def delete(self, key: Key) -> None:
        """Deletes a conversation with all there is of it; what runs in it ends first.

        Raises:
            ConversationNotFound: there is none.
            StoreUnavailable: the store cannot be reached.
        """
        store = await self._opened()
        # Whoever hangs up meanwhile leaves nothing half done.
        await asyncio.shield(self._start(self._delete(store, key)))

    async def _delete(self, store: Store, key: Key) -> None:
        # Who is about to have it would go on with what waits, however long that takes.
        await self._leases.settled(key)
        if (hold := self._leases.seize(key)) is not None:
            self._writer.drop(hold)
            hold.holder.lost(key)
        else:
            await self._leases.take(key)
        try:
            await store.delete(key)
        except ConversationNotFound:
            raise
        except BaseException:
            self._tell_left(key)
            raise
        finally:
            self._leases.give_up(key)
        self._gone(key)

    async def expire(self, agent: str, before_ns: int) -> int:
        """Deletes an agent's conversations that have not changed since then; how many."""
        keys = await (await self._opened()).expire(agent, before_ns=before_ns)
        for key in keys:
            if (hold := self._leases.seize(key)) is not None:
                self._writer.drop(hold)
                hold.holder.lost(key)
                self._leases.give_up(key)
            self._gone(key)
        return len(keys)

    async def trim(self, agent: str, *, max_events: int, max_bytes: int) -> int:
        """Deletes the oldest events of an agent's conversations beyond those bounds (0: none); how many."""
        return await (await self._opened()).trim(agent, max_events=max_events, max_bytes=max_bytes)

    def _gone(self, key: Key) -> None:
        self._lost.pop(key, None)
        self._watchers.fail(key, ConversationNotFound(key.conversation_id))


def ends(event: proto.Event) -> bool:
    """Whether it is the last one of its message."""
    return event.WhichOneof("content") in ("completion", "failure")


def wanted(conversation: proto.Conversation, message_id: str) -> proto.MessageInfo:
    """The message of that id, or the one that runs.

    Raises:
        MessageNotFound: there is none.
    """
    for info in conversation.messages:
        if info.message_id == message_id or (not message_id and info.status == proto.MESSAGE_STATUS_RUNNING):
            return info
    what = f"no message '{message_id}'" if message_id else "no message that runs"
    raise MessageNotFound(f"conversation '{conversation.conversation_id}' has {what}")


def _cancelled() -> proto.Failure:
    return proto.Failure(code=_CANCELLED, reason=Cancelled.reason, message="the message was cancelled")


def _ignore(_result: Appended | AgentError, _now_ns: int) -> None:
    """The store has said, or the log of the gateway does, what became of it."""
