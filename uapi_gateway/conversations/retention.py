"""How conversations, or the oldest of their events, are deleted: rows, files, and what is left of them on disk."""

import itertools
from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, delete, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from . import tables
from .blobs import Blobs, Name
from .databases import Database
from .store import Key

# Deleted in one transaction: appends wait meanwhile.
_AT_A_TIME = 100

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
        async with self._database.write() as connection:
            gone = delete(tables.conversations).where(_c.id.in_(ids), *conditions)
            rows = (await connection.execute(gone.returning(_c.id, _c.principal, _c.agent, _c.conversation_id))).all()
            numbers = [row.id for row in rows]
            if numbers:
                for column in (
                    _e.conversation,
                    _m.conversation,
                    tables.states.c.conversation,
                    tables.blobs.c.conversation,
                ):
                    await connection.execute(delete(column.table).where(column.in_(numbers)))
        if numbers:
            await self._blobs.removed([], numbers)
            self._unscrubbed = True
        await self._scrub()
        return [Key(row.principal, row.agent, row.conversation_id) for row in rows]

    async def expire(self, agent: str, before_ns: int) -> list[Key]:
        """Deletes what has not changed since, some at a time."""
        old = (_c.agent == agent, _c.changed_ns < before_ns, _c.unended == 0)
        async with self._database.read() as connection:
            ids = list((await connection.execute(select(_c.id).where(*old))).scalars())
        deleted: list[Key] = []
        for start in range(0, len(ids), _AT_A_TIME):
            deleted += await self.delete(ids[start : start + _AT_A_TIME], *old)
        await self._scrub()
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
        async with self._database.read() as connection:
            ids = list((await connection.execute(select(_c.id).where(_c.agent == agent, or_(*beyond)))).scalars())
        deleted = 0
        for conversation in ids:
            async with self._database.write() as connection:
                count, blobs = await self._trim(connection, conversation, max_events, max_bytes)
            await self._blobs.removed(blobs, [])
            deleted += count
        self._unscrubbed |= deleted > 0
        await self._scrub()
        return deleted

    async def _trim(
        self, connection: AsyncConnection, conversation: int, max_events: int, max_bytes: int
    ) -> tuple[int, list[Name]]:
        """Trims one: how many events went, and which blobs are to go."""
        locked = select(_c.first_sequence, _c.last_sequence, _c.bytes).where(_c.id == conversation).with_for_update()
        head = (await connection.execute(locked)).one_or_none()
        if head is None:
            return 0, []
        spans = select(_m.first_sequence, _m.last_sequence).where(_m.conversation == conversation)
        cuts = possible_cuts((await connection.execute(spans.order_by(_m.first_sequence))).tuples().all())
        if not cuts:
            return 0, []
        mine = (_e.conversation == conversation, _e.sequence <= cuts[-1])
        rows = (
            (await connection.execute(select(_e.sequence, _e.size).where(*mine).order_by(_e.sequence))).tuples().all()
        )
        excess_events = head.last_sequence - head.first_sequence + 1 - max_events if max_events else 0
        excess_bytes = head.bytes - max_bytes if max_bytes else 0
        cut = cut_at(cuts, dict(rows), excess_events, excess_bytes)
        gone = (_e.conversation == conversation, _e.sequence <= cut)
        large = select(_e.blob).where(*gone, _e.blob.is_not(None))
        blobs = [(conversation, digest) for digest in (await connection.execute(large)).scalars()]
        await self._blobs.remove(connection, blobs)
        await connection.execute(delete(tables.events).where(*gone))
        await connection.execute(
            delete(tables.messages).where(_m.conversation == conversation, _m.first_sequence <= cut)
        )
        freed = sum(size for sequence, size in rows if sequence <= cut)
        changed = tables.conversations.update().where(_c.id == conversation)
        await connection.execute(changed.values(first_sequence=cut + 1, bytes=_c.bytes - freed))
        return cut + 1 - int(head.first_sequence), blobs

    async def _scrub(self) -> None:
        """Tried again with the next deletion, or the next look for one, if somebody reads just now."""
        if self._unscrubbed:
            self._unscrubbed = not await self._database.scrub()


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


def cut_at(cuts: Sequence[int], sizes: Mapping[int, int], excess_events: int, excess_bytes: int) -> int:
    """The first of these cuts that takes as many events and bytes as are too many, or the last one.

    Args:
        cuts: not empty.
        sizes: of all events up to the last cut, in bytes, by their numbers and in their order.
    """
    left = iter(sizes.items())
    for cut in cuts:
        for sequence, size in left:
            excess_events -= 1
            excess_bytes -= size
            if sequence == cut:
                break
        if excess_events <= 0 and excess_bytes <= 0:
            return cut
    return cuts[-1]
