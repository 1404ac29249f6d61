"""Conversations in SQLite or PostgreSQL: the one implementation of `store.Store`, by SQLAlchemy Core."""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.errors import AgentError
from sqlalchemy import Select, and_, bindparam, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from . import tables
from .appending import Head, Message, Plan, token_of
from .blobs import Blobs, FileBlobs, TableBlobs
from .databases import Database, Sqlite, database
from .retention import Retention
from .store import Append, Appended, Key, Lease, Page

# Of a page of events, roughly: a frame to a worker, and what a reader is sent at a time.
PAGE_BYTES = 4 * 1024 * 1024
PAGE_EVENTS = 512
PAGE_CONVERSATIONS = 1000
MAX_CONVERSATION_BYTES = 256 * 1024 * 1024

_c = tables.conversations.c
_e = tables.events.c
_m = tables.messages.c
_NAMES = (_c.principal, _c.agent, _c.conversation_id)


class SqlStore:
    """A `Store`.

    Args:
        url: "sqlite:///path/of/file.db" or "postgresql://user:password@host/name".
        blobs: a directory for the bodies of large events; PostgreSQL has them in a table.
        max_bytes: a conversation's.

    Raises:
        ValueError: the URL is another one.
    """

    def __init__(self, url: str, blobs: Path, *, max_bytes: int = MAX_CONVERSATION_BYTES) -> None:
        self._max_bytes = max_bytes
        self._database: Database = database(url)
        self._files = FileBlobs(blobs) if isinstance(self._database, Sqlite) else None
        self._blobs: Blobs = self._files or TableBlobs()
        self._retention = Retention(self._database, self._blobs)
        self._insert_events = self._database.insert_many(tables.events)
        self._write_messages = self._database.insert_many(
            tables.messages, update=(_m.status, _m.attempts, _m.last_sequence)
        )
        self._write_states = self._database.insert_many(tables.states, update=(tables.states.c.body,))
        self._update_heads = self._database.update_many(
            tables.conversations,
            _c.last_sequence,
            _c.bytes,
            _c.state_version,
            _c.state_bytes,
            _c.unended,
            _c.changed_ns,
        )
        given = self._database.rows(*_NAMES).table
        self._heads = (
            select(*_NAMES, *_HEAD).where(tuple_(*_NAMES).in_(select(given))).order_by(_c.id)
        )  # in one order, as locks are taken
        if not self._database.single_writer:
            self._heads = self._heads.with_for_update()
        given = self._database.rows(_m.conversation, _m.message_id).table
        self._messages = select(_m.conversation, _m.message_id, *_MESSAGE).where(
            tuple_(_m.conversation, _m.message_id).in_(select(given))
        )

    async def open(self) -> None:
        """As in `Store`.

        Raises:
            FailedPrecondition: the tables are of a later version of the platform.
        """
        async with self._database.write() as connection:
            await connection.run_sync(tables.metadata.create_all)
            version = (await connection.execute(select(tables.schema.c.version))).scalar()
            if version is None:
                await connection.execute(tables.schema.insert().values(version=tables.VERSION))
            elif version != tables.VERSION:
                raise errors.FailedPrecondition(
                    f"the conversations were kept by another version of the platform (tables {version}, here "
                    f"{tables.VERSION}); run that one"
                )
        if self._files is not None:
            async with self._database.read() as connection:
                wanted = select(_e.conversation, _e.blob).where(_e.blob.is_not(None))
                names = {(row.conversation, row.blob) for row in await connection.execute(wanted)}
            await self._files.sweep(names)

    async def close(self) -> None:
        """As in `Store`."""
        await self._database.close()

    async def acquire(self, key: Key, holder: str, now_ns: int, *, token: int = 0) -> Lease:
        """As in `Store`.

        Raises:
            InvalidArgument: the conversation's id cannot be one.
            ConversationNotFound: the one that the token is of was deleted.
        """
        _check(key)
        async with self._database.write() as connection:
            if token:
                head = await self._reacquire(connection, key, holder, token)
            else:
                head = (await connection.execute(self._taking(key, holder, now_ns))).one()
            state = b""
            if head.state_version:
                wanted = select(tables.states.c.body).where(tables.states.c.conversation == head.id)
                state = (await connection.execute(wanted)).scalar_one()
            found = []
            if head.unended:
                for row in (await connection.execute(_UNENDED, {"conversation": head.id})).all():
                    event = await self._event(connection, head.id, row)
                    found.append((_message(row).info(row.message_id), event.message))
        return Lease(token_of(head.id, head.leases), head.last_sequence, state, head.state_version, tuple(found))

    def _taking(self, key: Key, holder: str, now_ns: int) -> Any:
        made = self._database.insert(tables.conversations).values(
            principal=key.principal,
            agent=key.agent,
            conversation_id=key.conversation_id,
            leases=1,
            holder=holder,
            first_sequence=1,
            last_sequence=0,
            bytes=0,
            state_version=0,
            state_bytes=0,
            unended=0,
            created_ns=now_ns,
            changed_ns=now_ns,
        )
        made = made.on_conflict_do_update(  # type: ignore[attr-defined]  # both dialects' have it
            index_elements=list(_NAMES),
            set_={"leases": _c.leases + 1, "holder": made.excluded.holder},  # type: ignore[attr-defined]
        )
        return made.returning(*_HEAD)

    async def _reacquire(self, connection: AsyncConnection, key: Key, holder: str, token: int) -> Any:
        head = (await connection.execute(_HEAD_OF, _names(key))).one_or_none()
        if head is None:
            raise errors.ConversationNotFound(key.conversation_id)
        taken = tables.conversations.update().where(_c.id == head.id).values(holder=holder)
        if token != token_of(head.id, head.leases):
            taken = taken.values(leases=_c.leases + 1)
        return (await connection.execute(taken.returning(*_HEAD))).one()

    async def append(self, batch: Sequence[Append], now_ns: int) -> list[Appended | AgentError]:
        """As in `Store`. A handful of statements, however many appends there are."""
        async with self._database.write() as connection:
            plan = await self._plan(connection, batch, now_ns)
            answers = plan.add_all(batch)
            await self._blobs.write(connection, plan.blobs)
            await self._insert_events.run(connection, plan.events)
            await self._write_messages.run(
                connection,
                [
                    (*at, message.status, message.attempts, message.first_sequence, message.last_sequence)
                    for at, message in plan.changed_messages.items()
                ],
            )
            await self._write_states.run(connection, list(plan.states.items()))
            await self._update_heads.run(
                connection,
                [
                    (
                        head.last_sequence,
                        head.bytes,
                        head.state_version,
                        head.state_bytes,
                        head.unended,
                        now_ns,
                        head.id,
                    )
                    for head in plan.changed_heads.values()
                ],
            )
        return answers

    async def _plan(self, connection: AsyncConnection, batch: Sequence[Append], now_ns: int) -> Plan:
        names = {(append.key.principal, append.key.agent, append.key.conversation_id) for append in batch}
        rows: Sequence[Any] = (await connection.execute(self._heads, self._database.values(sorted(names)))).all()
        heads = {Key(*row[:3]): Head(*row[3:]) for row in rows}
        said = {
            (head.id, event.message_id)
            for append in batch
            if (head := heads.get(append.key)) is not None
            for event in append.events
            if event.message_id and event.message_id.isprintable()  # PostgreSQL has no NUL; the others are refused
        }
        messages = {}
        if said:
            found = await connection.execute(self._messages, self._database.values(sorted(said)))
            messages = {(row[0], row[1]): Message(*row[2:]) for row in found.tuples()}
        return Plan(heads, messages, now_ns, self._max_bytes)

    async def events(
        self, key: Key, after: int, limit: int, *, message_id: str = "", backwards: bool = False
    ) -> tuple[list[proto.Event], bool]:
        """As in `Store`; never more than 512."""
        limit = min(limit or PAGE_EVENTS, PAGE_EVENTS)
        async with self._database.read() as connection:
            head = await self._found(connection, key)
            wanted = select(_e.sequence, _e.size, _e.body, _e.blob).where(_e.conversation == head.id).limit(limit + 1)
            if backwards:
                wanted = wanted.order_by(_e.sequence.desc())
                if after:
                    wanted = wanted.where(_e.sequence < after)
            else:
                wanted = wanted.where(_e.sequence > after).order_by(_e.sequence)
            if message_id:
                span = select(_m.first_sequence, _m.last_sequence).where(
                    _m.conversation == head.id, _m.message_id == message_id
                )
                message = (await connection.execute(span)).one_or_none()
                if message is None:
                    return [], False
                wanted = wanted.where(_e.message_id == message_id, _e.sequence >= message.first_sequence)
                if message.last_sequence:
                    wanted = wanted.where(_e.sequence <= message.last_sequence)
            rows = (await connection.execute(wanted)).all()
            if not backwards and not message_id:
                first = rows[0].sequence if rows else head.first_sequence
                if max(first, head.first_sequence) > after + 1:
                    raise errors.EventsExpired(
                        f"event {after + 1} of conversation '{key.conversation_id}' is not kept any more; the first "
                        f"that is has number {head.first_sequence}",
                        metadata={"first_sequence": str(head.first_sequence)},
                    )
            kept = _page(rows, limit)
            return [await self._event(connection, head.id, row) for row in kept], len(kept) < len(rows)

    async def _event(self, connection: AsyncConnection, conversation: int, row: Any) -> proto.Event:
        body: bytes = row.body
        if row.blob is not None:
            body = await self._blobs.read(connection, (conversation, row.blob)) + body
        return proto.Event.FromString(body)

    async def find(self, key: Key, message_id: str = "") -> proto.Conversation:
        """As in `Store`."""
        async with self._database.read() as connection:
            head = await self._found(connection, key)
            wanted = select(_m.message_id, *_MESSAGE).where(_m.conversation == head.id)
            wanted = wanted.where(_m.message_id == message_id) if message_id else wanted.where(_m.last_sequence == 0)
            found = (await connection.execute(wanted.order_by(_m.first_sequence))).all()
        conversation = _conversation(head)
        conversation.messages.extend(_message(row).info(row.message_id) for row in found)
        return conversation

    async def _found(self, connection: AsyncConnection, key: Key) -> Any:
        _check(key)
        head = (await connection.execute(_WHOLE.where(*_OF_KEY), _names(key))).one_or_none()
        if head is None:
            raise errors.ConversationNotFound(key.conversation_id)
        return head

    async def list(self, *, principal: str | None, agent: str, page_size: int, page_token: str) -> Page:
        """As in `Store`."""
        size = min(page_size or PAGE_CONVERSATIONS, PAGE_CONVERSATIONS)
        wanted = _WHOLE.order_by(_c.changed_ns.desc(), _c.id.desc()).limit(size + 1)
        if principal is not None:
            wanted = wanted.where(_c.principal == principal)
        if agent:
            wanted = wanted.where(_c.agent == agent)
        if page_token:
            changed_ns, number = _read_token(page_token)
            wanted = wanted.where(_c.changed_ns <= changed_ns, or_(_c.changed_ns < changed_ns, and_(_c.id < number)))
        async with self._database.read() as connection:
            rows = (await connection.execute(wanted)).all()
        last = rows[size - 1] if len(rows) > size else None
        return Page(
            tuple(_conversation(row) for row in rows[:size]),
            _token(last.changed_ns, last.id) if last is not None else "",
        )

    async def unfinished(self, agent: str) -> Sequence[Key]:
        """As in `Store`."""
        with_some = select(_m.conversation).where(_m.last_sequence == 0)
        wanted = select(*_NAMES).where(_c.id.in_(with_some)).order_by(_c.id)
        if agent:
            wanted = wanted.where(_c.agent == agent)
        async with self._database.read() as connection:
            return [Key(*row) for row in (await connection.execute(wanted)).tuples()]

    async def delete(self, key: Key) -> None:
        """As in `Store`."""
        async with self._database.read() as connection:
            head = await self._found(connection, key)
        if not await self._retention.delete([head.id]):
            raise errors.ConversationNotFound(key.conversation_id)

    async def expire(self, agent: str, *, before_ns: int) -> Sequence[Key]:
        """As in `Store`."""
        return await self._retention.expire(agent, before_ns)

    async def trim(self, agent: str, *, max_events: int, max_bytes: int) -> int:
        """As in `Store`. The newest message stays, whatever the bounds are."""
        return await self._retention.trim(agent, max_events, max_bytes)


_HEAD = (_c.id, _c.leases, _c.last_sequence, _c.bytes, _c.state_version, _c.state_bytes, _c.unended)
_MESSAGE = (_m.status, _m.attempts, _m.first_sequence, _m.last_sequence)
_OF_KEY = tuple(column == bindparam(f"its_{column.name}") for column in _NAMES)
_HEAD_OF: Select[Any] = select(*_HEAD).where(*_OF_KEY)
_WHOLE: Select[Any] = select(tables.conversations)
_UNENDED = (
    select(_m.message_id, *_MESSAGE, _e.body, _e.blob)
    .join_from(
        tables.messages,
        tables.events,
        and_(_e.conversation == _m.conversation, _e.sequence == _m.first_sequence),
    )
    .where(_m.conversation == bindparam("conversation"), _m.last_sequence == 0)
    .order_by(_m.first_sequence)
)


def _names(key: Key) -> dict[str, str]:
    return {
        "its_principal": key.principal,
        "its_agent": key.agent,
        "its_conversation_id": key.conversation_id,
    }


def _message(row: Any) -> Message:
    return Message(row.status, row.attempts, row.first_sequence, row.last_sequence)


def _conversation(row: Any) -> proto.Conversation:
    made = proto.Conversation(
        conversation_id=row.conversation_id,
        agent=row.agent,
        principal=row.principal,
        first_sequence=row.first_sequence,
        last_sequence=row.last_sequence,
        bytes=row.bytes,
        state_version=row.state_version,
    )
    made.created_at.FromNanoseconds(row.created_ns)
    made.changed_at.FromNanoseconds(row.changed_ns)
    return made


def _page(rows: Sequence[Any], limit: int) -> Sequence[Any]:
    """As many as fit a page, but one at least."""
    total = 0
    for n, row in enumerate(rows[:limit]):
        total += row.size
        if n and total > PAGE_BYTES:
            return rows[:n]
    return rows[:limit]


def _check(key: Key) -> None:
    name = key.conversation_id
    if not (0 < len(name) <= 200 and name.isascii() and name.isprintable()):
        raise errors.InvalidArgument("a conversation's id has 1 to 200 printable ASCII characters")
    if "\0" in key.principal or "\0" in key.agent:
        raise errors.InvalidArgument("a name has a NUL character in it")


def _token(changed_ns: int, number: int) -> str:
    return base64.urlsafe_b64encode(f"{changed_ns}:{number}".encode()).decode()


def _read_token(token: str) -> tuple[int, int]:
    try:
        changed_ns, number = base64.urlsafe_b64decode(token).decode().split(":")
        return int(changed_ns), int(number)
    except (ValueError, binascii.Error) as error:
        raise errors.InvalidArgument("page_token is not one that an answer had; leave it empty to begin") from error
