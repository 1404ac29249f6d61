"""How conversations, or the oldest of their events, are deleted: rows, files, and what is left of them on disk."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, or_, select

from . import tables
from .blobs import Blobs, Name
from .databases import Database
from .store import Key

# Deleted in one transaction: appends wait meanwhile.
_AT_A_TIME = 100
# Most conversations are beyond a bound by what was said since the last look.
_SIZES_AT_A_TIME = 256
# To have it overwritten, half a second each.
_TRIES = 10

_c = tables.conversations.c
_e = tables.events.c
_m = tables.messages.c


class Retention:
    """Deletes from a database and its blobs."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs
        # Something is deleted that may still be read from the files of the database.
        self._unscrubbed = False

    async def delete(self, ids: Sequence[int], *conditions: ColumnElement[bool]) -> list[Key]:
        """Deletes conversations with these numbers, if they are there and the conditions hold; which."""

        def work(connection: Connection) -> list[Any]:
            gone = delete(tables.conversations).where(_c.id.in_(ids), *conditions)
            rows = list(connection.execute(gone.returning(_c.id, _c.principal, _c.agent, _c.conversation_id)))
            numbers = [row.id for row in rows]
            if numbers:
                for table in (tables.events, tables.messages, tables.states, tables.blobs):
                    connection.execute(delete(table).where(table.c.conversation.in_(numbers)))
            return rows

        rows = await self._database.write(work)
        if rows:
            await self._blobs.removed([], [row.id for row in rows])
            self._unscrubbed = True
        return [Key(row.principal, row.agent, row.conversation_id) for row in rows]

    async def expire(self, agent: str, before_ns: int) -> list[Key]:
        """Deletes what has not changed since, some at a time."""
        old = (_c.agent == agent, _c.changed_ns < before_ns, _c.unended == 0)
        ids = await self._ids(*old)
        deleted: list[Key] = []
        for start in range(0, len(ids), _AT_A_TIME):
            deleted += await self.delete(ids[start : start + _AT_A_TIME], *old)
        return deleted

    async def trim(self, agent: str, max_events: int, max_bytes: int) -> int:
        """Deletes the oldest events of conversations beyond bounds, a conversation at a time; how many."""
        beyond: list[ColumnElement[bool]] = []
        if max_events:
            beyond.append(_c.last_sequence - _c.first_sequence >= max_events)
        if max_bytes:
            beyond.append(_c.bytes > max_bytes)
        if not beyond:
            return 0
        deleted = 0
        for number in await self._ids(_c.agent == agent, or_(*beyond)):
            work = partial(self._trim, conversation=number, max_events=max_events, max_bytes=max_bytes)
            count, blobs = await self._database.write(work)
            await self._blobs.removed(blobs, [])
            deleted += count
        self._unscrubbed |= deleted > 0
        return deleted

    async def scrub(self) -> None:
        """Has what was deleted overwritten. If somebody reads all the while, it is done after the next deletion."""
        for _ in range(_TRIES):
            if self._unscrubbed:
                self._unscrubbed = not await self._database.scrub()

    async def _ids(self, *conditions: ColumnElement[bool]) -> list[int]:
        return await self._database.read(
            lambda connection: list(connection.execute(select(_c.id).where(*conditions)).scalars())
        )

    def _trim(
        self, connection: Connection, *, conversation: int, max_events: int, max_bytes: int
    ) -> tuple[int, list[Name]]:
        """Trims one: how many events went, and which blobs are to go."""
        locked = select(_c.first_sequence, _c.last_sequence, _c.bytes).where(_c.id == conversation).with_for_update()
        head = connection.execute(locked).one_or_none()
        if head is None:
            return 0, []
        # The event up to which all is too much.
        least = head.last_sequence - max_events if max_events else 0
        if max_bytes and head.bytes > max_bytes:
            least = max(least, freeing(_sizes(connection, conversation), head.bytes - max_bytes))
        spans = select(_m.first_sequence, _m.last_sequence).where(_m.conversation == conversation)
        cuts = possible_cuts(connection.execute(spans.order_by(_m.first_sequence)).all())
        if not cuts:
            return 0, []
        cut = next((cut for cut in cuts if cut >= least), cuts[-1])
        gone = delete(tables.events).where(_e.conversation == conversation, _e.sequence <= cut)
        rows = connection.execute(gone.returning(_e.size, _e.blob)).all()
        blobs = [(conversation, row.blob) for row in rows if row.blob is not None]
        self._blobs.remove(connection, blobs)
        connection.execute(delete(tables.messages).where(_m.conversation == conversation, _m.first_sequence <= cut))
        freed = sum(row.size for row in rows)
        changed = tables.conversations.update().where(_c.id == conversation)
        connection.execute(changed.values(first_sequence=cut + 1, bytes=_c.bytes - freed))
        return cut + 1 - int(head.first_sequence), blobs


def possible_cuts(spans: Sequence[tuple[int, int]]) -> list[int]:
    """Sequence numbers up to which all messages have ended, so that none would lose its beginning; not the newest's.

    Args:
        spans: the first and last sequence number of each message, 0 of one that has not ended, by the first.
    """
    cuts = []
    end = 0
    for (_, last), (following, _) in itertools.pairwise(spans):
        if last == 0:
            break
        end = max(end, last)
        if end < following:
            # What came between them, like a state, stays with what follows.
            cuts.append(end)
    return cuts


def freeing(sizes: Iterable[tuple[int, int]], excess_bytes: int) -> int:
    """The event with which as many bytes are gone as are too many, or the last one; no further one is looked at.

    Args:
        sizes: numbers and bytes of events, the oldest first.
        excess_bytes: more than 0.
    """
    number = 0
    for number, size in sizes:
        excess_bytes -= size
        if excess_bytes <= 0:
            return number
    return number


def _sizes(connection: Connection, conversation: int) -> Iterator[tuple[int, int]]:
    """Of all events of a conversation, read as they are asked for."""
    wanted = select(_e.sequence, _e.size).where(_e.conversation == conversation).order_by(_e.sequence)
    after = 0
    while rows := connection.execute(wanted.where(_e.sequence > after).limit(_SIZES_AT_A_TIME)).all():
        for sequence, size in rows:
            yield sequence, size
            after = sequence
