"""What is to be written into one conversation, in order: each event reaches whoever waits for it once it is on disk.

One append is under way at a time; what comes meanwhile gathers for the next one. If it is not known whether an append
was written, the log's last sequence number says so: nobody else writes while the lease is held.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import event_log_pb2 as wire

from agent_worker.conversations.log import LogClient, error_of, is_away
from agent_worker.conversations.message import Message

# Of one append, if its first write is not larger by itself.
_MOST_EVENTS, _MOST_BYTES = 512, 2**20
# Pieces of a reply that wait to be written, until whoever makes them waits too.
_MOST_GATHERED = 1024


@dataclass(slots=True)
class Write:
    """Events that are written together."""

    message: Message
    events: list[proto.Event]
    # Of them, those in front are none of the message's own.
    hidden: int = 0
    # Shares its append with no other: it may be refused for reasons of its own.
    alone: bool = False
    # The last of them is the message's last.
    ends: bool = False
    # With a StateChange.
    state: bytes = b""
    expected_version: int | None = None
    done: Callable[[], None] | None = None
    # Gets why nothing was written; None if the message is known already.
    refused: Callable[[errors.AgentError | None], None] | None = None


class Outbox:
    """Of one conversation.

    Args:
        principal: whose.
        conversation_id: its id.
        client: of the log.
        away: called when the log cannot write now; `resume` goes on.
        lost: called when somebody else has the lease.
    """

    __slots__ = (
        "_away", "_client", "_conversation_id", "_is_due", "_lost", "_principal", "_room", "_underway", "_writes",
        "is_open", "sequence", "token",
    )  # fmt: skip

    def __init__(
        self,
        principal: str,
        conversation_id: str,
        client: LogClient,
        *,
        away: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        self._principal = principal
        self._conversation_id = conversation_id
        self._client = client
        self._away = away
        self._lost = lost
        self._writes: deque[Write] = deque()
        self._underway: list[Write] = []
        self._is_due = False
        self._room: list[asyncio.Future[None]] = []
        # Of the lease; 0 before there is one.
        self.token = 0
        # The last that is known to be on disk.
        self.sequence = 0
        # Whether what is put is sent.
        self.is_open = False

    @property
    def is_empty(self) -> bool:
        return not self._writes and not self._underway

    @property
    def has_room(self) -> bool:
        return len(self._writes) < _MOST_GATHERED

    async def room(self) -> None:
        """Returns when less is waiting, or nothing will ever be written again."""
        while not self.has_room:
            room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._room.append(room)
            await room

    def put(self, write: Write) -> None:
        """Writes it after what was put before."""
        self._writes.append(write)
        self._schedule()

    def resume(self, token: int, sequence: int) -> None:
        """The lease is held, and these are its token and the log's last sequence number."""
        if not self.token or not self._underway:
            self.token, self.sequence, self.is_open = token, sequence, True
            self._schedule()
            return
        self.is_open = True
        written = self.sequence + sum(len(write.events) for write in self._underway)
        if sequence == written:
            # When, the log knows: what callers are told is what they can read there later.
            read = wire.ReadEvents(conversation_id=self._conversation_id, after_sequence=written - 1, limit=1)
            self._client.request(wire.LogRequest(read=read, principal=self._principal), self._recalled)
        elif sequence == self.sequence:
            self._send()
        else:
            self._lost()

    def suspend(self) -> None:
        """The log is away: what is put waits."""
        self.is_open = False

    def drop(self, error: errors.AgentError) -> None:
        """Writes nothing any more."""
        self.is_open = False
        dropped = [*self._underway, *self._writes]
        self._underway = []
        self._writes.clear()
        for write in dropped:
            if write.refused:
                write.refused(error)
        self._make_room()

    def _schedule(self) -> None:
        if self.is_open and self._writes and not self._is_due and not self._underway:
            # At the end of this turn: what else is put in it goes along.
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._is_due = False
        if not self.is_open or self._underway or not self._writes:
            return
        first = self._writes.popleft()
        underway = [first]
        if not first.alone and self._writes:
            count, size_bytes = len(first.events), _size_bytes(first)
            while self._writes and not self._writes[0].alone:
                count += len(self._writes[0].events)
                size_bytes += _size_bytes(self._writes[0])
                if count > _MOST_EVENTS or size_bytes > _MOST_BYTES:
                    break
                underway.append(self._writes.popleft())
        self._underway = underway
        self._make_room()
        self._send()

    def _send(self) -> None:
        underway = self._underway
        first = underway[0]
        append = wire.AppendEvents(
            conversation_id=self._conversation_id,
            token=self.token,
            events=first.events if len(underway) == 1 else [event for write in underway for event in write.events],
            state=first.state,
            expected_state_version=first.expected_version,
        )
        self._client.request(wire.LogRequest(append=append, principal=self._principal), self._answered)

    def _answered(self, reply: wire.LogReply | None) -> None:
        if not self.is_open or not self._underway:
            return  # another answer decides: that of opening it again
        if reply is None:
            self.is_open = False
            return
        if reply.HasField("appended"):
            if reply.appended.HasField("known"):
                self._underway[0].message.first_sequence = reply.appended.known.first_sequence
                self._refused(None)
            else:
                self._written(reply.appended.last_sequence, reply.appended.time_ns)
        elif is_away(reply.error):
            self.is_open = False
            self._away()
        elif reply.error.reason == errors.LeaseLost.reason:
            self._lost()
        else:
            self._refused(error_of(reply.error))

    def _recalled(self, reply: wire.LogReply | None) -> None:
        if not self.is_open or not self._underway:
            return  # as above
        if reply is None:
            self.is_open = False
        elif reply.events.events:
            event = reply.events.events[0]
            self._written(event.sequence, event.time.ToNanoseconds())
        elif is_away(reply.error):
            self.is_open = False
            self._away()
        else:
            self._lost()

    def _written(self, last_sequence: int, time_ns: int) -> None:
        underway, self._underway = self._underway, []
        sequence = last_sequence - sum([len(write.events) for write in underway])
        seconds, nanos = divmod(time_ns, 10**9)
        self.sequence = last_sequence
        token = self.token
        for write in underway:
            message, hidden = write.message, write.hidden
            if write.ends:
                message.end = write.events[-1]
            for event in write.events:
                sequence += 1
                event.sequence = sequence
                event.token = token
                stamp = event.time
                stamp.seconds = seconds
                stamp.nanos = nanos
                if hidden:
                    hidden -= 1
                else:
                    message.publish(event)
            if write.done:
                write.done()
        self._schedule()

    def _refused(self, error: errors.AgentError | None) -> None:
        underway, self._underway = self._underway, []
        for write in underway:
            if write.refused:
                write.refused(error)
        self._schedule()

    def _make_room(self) -> None:
        if self._room:
            waiting, self._room = self._room, []
            for each in waiting:
                if not each.done():
                    each.set_result(None)


def _size_bytes(write: Write) -> int:
    return sum([event.ByteSize() for event in write.events])
