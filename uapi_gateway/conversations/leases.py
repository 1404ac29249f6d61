"""Who may write into which conversation now, and who waits for that. Plain memory; `log.py` tells it what happens.

What decides is the token in the store; this table spares the asking, and knows whom to tell.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.errors import AgentError

from uapi_gateway.conversations.ends import End
from uapi_gateway.conversations.store import Append, Appended, Key, Lease

# Gets what became of an append, and the time of its events.
Done = Callable[[Appended | AgentError, int], None]


class Holder(Protocol):
    """A worker's connection, or the gateway itself."""

    # For people who read the table.
    name: str
    end: End
    # It has gone, and can hold nothing any more.
    ended: bool

    def wanted(self, key: Key) -> None:
        """Somebody waits for a conversation that it holds."""

    def cancelled(self, key: Key, message_id: str) -> None:
        """A message is to end."""

    def lost(self, key: Key) -> None:
        """It holds the conversation no more."""


@dataclass(slots=True, eq=False)
class Hold:
    """A lease that somebody has."""

    key: Key
    holder: Holder
    token: int
    # Of the newest event that is on disk.
    last_sequence: int
    # Messages that have not ended, in their order, and whether they were begun.
    unended: dict[str, bool]
    state_version: int
    # What is to be written, in its order.
    queue: deque[tuple[Append, Done]] = field(default_factory=deque)
    # One of them is being written, or about to be.
    busy: bool = False
    # Nothing more is taken.
    over: bool = False
    # Messages whose end was asked for.
    cancelled: set[str] = field(default_factory=set)
    # Of the table: those in which a message runs.
    at_work: set["Hold"] = field(default_factory=set)
    # Called as soon as nothing is to be written any more.
    drained: list[Callable[[], None]] = field(default_factory=list)

    def wrote(self, append: Append, last_sequence: int) -> None:
        """Takes note of what is on disk now."""
        self.last_sequence = last_sequence
        for event in append.events:
            match event.WhichOneof("content"):
                case "message" | "interruption":
                    self.unended[event.message_id] = False
                case "attempt":
                    self.unended[event.message_id] = True
                case "cancellation":
                    self.cancelled.add(event.message_id)
                case "completion" | "failure":
                    self.unended.pop(event.message_id, None)
                    self.cancelled.discard(event.message_id)
                case "state":
                    self.state_version += 1
        if self.running and not self.over:
            self.at_work.add(self)
        else:
            self.at_work.discard(self)

    @property
    def running(self) -> str:
        """The message that was begun; "" if there is none."""
        return next((message_id for message_id, begun in self.unended.items() if begun), "")


@dataclass(slots=True, eq=False)
class _Place:
    """All that is known of one conversation's lease."""

    hold: Hold | None = None
    # Nobody has it, and nobody else may: it is being taken, or kept for who had it before, or deleted.
    taken: bool = False
    reserved: bool = False
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    # Those who wait for it to be somebody's or nobody's.
    unsettled: list[asyncio.Future[None]] = field(default_factory=list)

    def settle(self) -> None:
        waiting, self.unsettled = self.unsettled, []
        for each in waiting:
            if not each.done():
                each.set_result(None)


class Leases:
    """The table."""

    def __init__(self) -> None:
        self._places: dict[Key, _Place] = {}
        self._at_work: set[Hold] = set()

    def __len__(self) -> int:
        return len(self._places)

    def running(self) -> Counter[str]:
        """In how many conversations of each agent a message runs."""
        return Counter(hold.key.agent for hold in self._at_work)

    def get(self, key: Key) -> Hold | None:
        """Who has it."""
        place = self._places.get(key)
        return place.hold if place else None

    def occupied(self, key: Key) -> bool:
        """Somebody has it, or is about to."""
        return key in self._places

    async def take(self, key: Key) -> None:
        """Waits until nobody has it; then it is the caller's to `enter`, or to `give_up`."""
        place = self._places.setdefault(key, _Place())
        if place.hold is None and not place.taken:
            place.taken = True
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place.waiting.append(turn)
        if place.hold is not None:
            place.hold.holder.wanted(key)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                place.waiting.remove(turn)
            else:
                self.give_up(key)
            raise

    def reserve(self, key: Key) -> None:
        """Keeps it for whoever had it before."""
        place = self._places.setdefault(key, _Place())
        if place.hold is None and not place.taken:
            place.taken = place.reserved = True

    def claim(self, key: Key) -> bool:
        """Takes it if it is kept for who had it before, or is nobody's; says whether."""
        place = self._places.setdefault(key, _Place())
        if place.hold is not None or (place.taken and not place.reserved):
            return False
        place.taken, place.reserved = True, False
        return True

    def unreserve(self, key: Key) -> bool:
        """Keeps it no longer; says whether it was kept until now."""
        place = self._places.get(key)
        if place is None or not place.reserved:
            return False
        place.reserved = False
        self.give_up(key)
        return True

    async def settled(self, key: Key) -> Hold | None:
        """Who has it; waits while it is about to be somebody's."""
        while (place := self._places.get(key)) is not None:
            if place.hold is not None:
                return place.hold
            settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            place.unsettled.append(settled)
            await settled
        return None

    def enter(self, key: Key, holder: Holder, lease: Lease) -> Hold:
        """Whoever took it has it."""
        place = self._places[key]
        unended = {info.message_id: info.status == proto.MESSAGE_STATUS_RUNNING for info, _ in lease.messages}
        place.hold = Hold(
            key, holder, lease.token, lease.last_sequence, unended, lease.state_version,
            cancelled=set(lease.cancelled), at_work=self._at_work,
        )  # fmt: skip
        place.taken = False
        place.settle()
        if place.waiting:
            # Once it has heard that it has it.
            asyncio.get_running_loop().call_soon(holder.wanted, key)
        return place.hold

    def seize(self, key: Key) -> Hold | None:
        """Takes it from whoever has it, before all who wait; None if nobody has it."""
        place = self._places.get(key)
        if place is None or place.hold is None:
            return None
        hold, place.hold, place.taken = place.hold, None, True
        self._at_work.discard(hold)
        return hold

    def give_up(self, key: Key) -> None:
        """It is the next one's who waits."""
        place = self._places[key]
        if place.hold is not None:
            self._at_work.discard(place.hold)
        place.hold, place.taken = None, False
        place.settle()
        while place.waiting:
            turn = place.waiting.popleft()
            if not turn.done():
                place.taken = True
                turn.set_result(None)
                return
        del self._places[key]
