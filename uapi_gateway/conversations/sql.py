"""Conversations in SQLite or PostgreSQL: the one implementation of `store.Store`, by SQLAlchemy Core."""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.errors import AgentError
from sqlalchemy import Column, Connection, FromClause, Select, and_, bindparam, func, literal, select, tuple_

from . import tables
from .appending import ASKED, Head, Message, Plan, is_id, token_of
from .blobs import Blobs, FileBlobs, TableBlobs
from .databases import Database, Sqlite, database
from .retention import Retention
from .store import Append, Appended, Course, Courses, Key, Lease, Page

# Of a page of events, roughly: a frame to a worker, and what a reader is sent at a time.
PAGE_BYTES = 4 * 1024 * 1024
PAGE_EVENTS = 512
PAGE_CONVERSATIONS = 1000
# Of a lease, state and messages: it goes to the worker in one frame of 16 MiB. Each message has so much at most in it
# besides what was said.
LEASE_BYTES, _INFO_BYTES = 31 * 2**19, 256
MAX_CONVERSATION_BYTES = 256 * 1024 * 1024
_LARGEST = 2**63 - 1

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
        self._blobs: Blobs = FileBlobs(blobs) if isinstance(self._database, Sqlite) else TableBlobs()
        self._retention = Retention(self._database, self._blobs)
        made = self._database
        self._take = _taking(made.insert(tables.conversations))
        self._insert_events = made.inserting(tables.events)
        self._write_messages = made.inserting(tables.messages, (_m.status, _m.attempts, _m.last_sequence))
        self._write_states = made.inserting(tables.states, (tables.states.c.body,))
        self._update_heads = made.updating(_CHANGED_HEAD)
        heads = select(*_NAMES, *_HEAD)
        if made.locks:
            # In one order, so that nobody waits for each other.
            heads = heads.order_by(_c.id).with_for_update(of=tables.conversations)
        self._heads = made.reading(_NAMES, lambda given: _joined(heads, given, _NAMES))
        said = (_m.conversation, _m.message_id)
        messages = select(*said, *_MESSAGE)
        self._messages = made.reading(said, lambda given: _joined(messages, given, said))

    async def open(self) -> None:
        """As in `Store`.

        Raises:
            FailedPrecondition: the tables are of another version of the platform.
        """
        await self._database.write(_make)
        if isinstance(self._blobs, FileBlobs):
            await self._database.read(self._sweep)

    def _sweep(self, connection: Connection) -> None:
        rows = connection.execute(select(_e.conversation, _e.blob).where(_e.blob.is_not(None)))
        assert isinstance(self._blobs, FileBlobs)
        self._blobs.sweep({(row.conversation, row.blob) for row in rows})

    async def close(self) -> None:
        """As in `Store`."""
        await self._database.close()

    async def acquire(
        self, key: Key, holder: str, now_ns: int, *, token: int = 0, existing: bool = False, to_end: bool = False
    ) -> Lease:
        """As in `Store`.

        Raises:
            InvalidArgument: the conversation's id cannot be one.
        """
        _check(key)

        def work(connection: Connection) -> Lease:
            if token or existing or to_end:
                head = _take_again(connection, key, holder, token)
            else:
                new = {**_names(key), "holder": holder, "created_ns": now_ns, "changed_ns": now_ns}
                head = connection.execute(self._take, new).one()
            state = b""
            if head.state_version and not to_end:
                wanted = select(tables.states.c.body).where(tables.states.c.conversation == head.id)
                state = connection.execute(wanted).scalar_one()
            found, cancelled = [], []
            if head.unended:
                if not to_end:
                    _check_size(connection, key, head)
                for row in connection.execute(_ENDING if to_end else _UNENDED, {"its_id": head.id}).all():
                    said = proto.ChatMessage() if to_end else self._event(connection, head.id, row).message
                    message = _message(row)
                    found.append((message.info(row.message_id), said))
                    if message.cancelled:
                        cancelled.append(row.message_id)
            return Lease(
                token_of(head.id, head.leases), head.last_sequence, state, head.state_version,
                tuple(found), frozenset(cancelled),
            )  # fmt: skip

        # A token is in no event before an append has synced it, too.
        return await self._database.write(work, synced=False)

    async def append(self, batch: Sequence[Append], now_ns: int) -> list[Appended | AgentError]:
        """As in `Store`. A handful of statements, however many appends there are."""

        def work(connection: Connection) -> list[Appended | AgentError]:
            plan = self._plan(connection, batch, now_ns)
            answers = plan.add_all(batch)
            self._blobs.write(connection, plan.blobs)
            self._insert_events(connection, plan.events)
            self._write_messages(connection, plan.message_rows())
            self._write_states(connection, list(plan.states.items()))
            self._update_heads(connection, plan.head_rows())
            return answers

        return await self._database.write(work)

    def _plan(self, connection: Connection, batch: Sequence[Append], now_ns: int) -> Plan:
        names = {(append.key.principal, append.key.agent, append.key.conversation_id) for append in batch}
        heads = {Key(*row[:3]): Head(*row[3:]) for row in self._heads(connection, sorted(names))}
        said = {
            (head.id, event.message_id)
            for append in batch
            if (head := heads.get(append.key)) is not None
            for event in append.events
            if event.message_id and event.message_id.isprintable()  # PostgreSQL has no NUL; the others are refused
        }
        messages = {}
        if said:
            messages = {(row[0], row[1]): Message(*row[2:]) for row in self._messages(connection, sorted(said))}
        return Plan(heads, messages, now_ns, self._max_bytes)

    async def events(
        self, key: Key, after: int, limit: int, *, message_id: str = "", backwards: bool = False
    ) -> tuple[list[proto.Event], bool]:
        """As in `Store`; never more than 512."""
        _check(key, message_id)
        after = min(after, _LARGEST)
        most = min(limit or PAGE_EVENTS, PAGE_EVENTS)

        def work(connection: Connection) -> tuple[list[proto.Event], bool]:
            head = _found(connection, key)
            wanted = _events(head.id, after, backwards=backwards).limit(most + 1)
            if message_id:
                span = _span(connection, head.id, message_id)
                if span is None:
                    return [], False
                wanted = wanted.where(_e.message_id == message_id, _e.sequence.between(*span))
            rows = connection.execute(wanted).all()
            if not backwards and not message_id:
                # They may be trimmed between the two statements.
                first = max(head.first_sequence, rows[0].sequence if rows else 0)
                if first > after + 1:
                    raise _expired(key, after, first)
            kept = _page(rows, most)
            try:
                return [self._event(connection, head.id, row) for row in kept], len(kept) < len(rows)
            except errors.DataLoss:
                # It may be trimmed since, with its file.
                first = _found(connection, key).first_sequence
                if first > min(row.sequence for row in kept):
                    raise _expired(key, after, first) from None
                raise

        return await self._database.read(work)

    def _event(self, connection: Connection, conversation: int, row: Any) -> proto.Event:
        body: bytes = row.body
        if row.blob is not None:
            body = self._blobs.read(connection, (conversation, row.blob)) + body
        return proto.Event.FromString(body)

    async def find(self, key: Key, message_id: str = "") -> proto.Conversation:
        """As in `Store`."""
        _check(key, message_id)
        wanted = select(_m.message_id, *_MESSAGE).order_by(_m.first_sequence)
        wanted = wanted.where(_m.message_id == message_id) if message_id else wanted.where(_m.last_sequence == 0)

        def work(connection: Connection) -> proto.Conversation:
            head = _found(connection, key)
            conversation = _conversation(head)
            for row in connection.execute(wanted.where(_m.conversation == head.id)):
                conversation.messages.append(_message(row).info(row.message_id))
            return conversation

        return await self._database.read(work)

    async def messages(
        self, key: Key, before: int, limit: int, *, statuses: "Sequence[proto.MessageStatus.ValueType]" = ()
    ) -> Courses:
        """As in `Store`."""
        _check(key)

        def work(connection: Connection) -> Courses:
            head = _found(connection, key)
            rows = connection.execute(_courses(head.id, min(before, _LARGEST), limit, statuses)).all()
            try:
                courses = tuple(self._course(connection, head.id, row) for row in _page(rows, limit))
            except errors.DataLoss:
                # As for events.
                first = _found(connection, key).first_sequence
                if first > min(row.first_sequence for row in rows):
                    raise _expired(key, 0, first) from None
                raise
            return Courses(courses, rows[0].there_are if rows else 0)

        return await self._database.read(work)

    def _course(self, connection: Connection, conversation: int, row: Any) -> Course:
        first = self._event(connection, conversation, row)
        last = None
        if row.last_sequence:
            last = self._event(connection, conversation, SimpleNamespace(body=row.last_body, blob=row.last_blob))
        return Course(_message(row).info(row.message_id), first, last)

    async def list(self, *, principal: str | None, agent: str, page_size: int, page_token: str) -> Page:
        """As in `Store`."""
        _check_names(principal or "", agent)
        size = min(page_size or PAGE_CONVERSATIONS, PAGE_CONVERSATIONS)
        wanted = _WHOLE.order_by(_c.changed_ns.desc(), _c.id.desc()).limit(size + 1)
        if principal is not None:
            wanted = wanted.where(_c.principal == principal)
        if agent:
            wanted = wanted.where(_c.agent == agent)
        if page_token:
            changed_ns, number = _read_token(page_token)
            wanted = wanted.where(tuple_(_c.changed_ns, _c.id) < tuple_(literal(changed_ns), literal(number)))
        rows: Sequence[Any] = await self._database.read(lambda connection: connection.execute(wanted).all())
        token = _token(rows[size - 1].changed_ns, rows[size - 1].id) if len(rows) > size else ""
        return Page(tuple(_conversation(row) for row in rows[:size]), token)

    async def unfinished(self, agent: str) -> Sequence[Key]:
        """As in `Store`."""
        with_some = select(_m.conversation).where(_m.last_sequence == 0)
        wanted = select(*_NAMES).where(_c.id.in_(with_some)).order_by(_c.id)
        rows = await self._database.read(lambda connection: connection.execute(wanted).all())
        # Here, not there: SQLite would go through all conversations of the agent.
        return [key for row in rows if (key := Key(*row)).agent == agent or not agent]

    async def delete(self, key: Key) -> None:
        """As in `Store`."""
        _check(key)
        head = await self._database.read(lambda connection: _found(connection, key))
        if not await self._retention.delete([head.id]):
            raise errors.ConversationNotFound(key.conversation_id)
        await self._retention.scrub()

    async def expire(self, agent: str, *, before_ns: int) -> Sequence[Key]:
        """As in `Store`, in transactions of some at a time."""
        deleted = await self._retention.expire(agent, before_ns)
        await self._retention.scrub()
        return deleted

    async def trim(self, agent: str, *, max_events: int, max_bytes: int) -> int:
        """As in `Store`, in a transaction for each. The newest message stays, whatever the bounds are."""
        deleted = await self._retention.trim(agent, max_events, max_bytes)
        await self._retention.scrub()
        return deleted


_HEAD = (_c.id, _c.leases, _c.last_sequence, _c.bytes, _c.state_version, _c.state_bytes, _c.unended)
_MESSAGE = (_m.status, _m.attempts, _m.first_sequence, _m.last_sequence)
_CHANGED_HEAD = (_c.last_sequence, _c.bytes, _c.state_version, _c.state_bytes, _c.unended, _c.changed_ns, _c.id)
_WHOLE: Select[Any] = select(tables.conversations)
_OF_KEY = _WHOLE.where(*(column == bindparam(column.name) for column in _NAMES))
_OF_UNENDED = and_(_m.conversation == bindparam("its_id"), _m.last_sequence == 0)
_THEIR_FIRST = (
    tables.messages,
    tables.events,
    and_(_e.conversation == _m.conversation, _e.sequence == _m.first_sequence),
)
_ENDING = select(_m.message_id, *_MESSAGE).where(_OF_UNENDED).order_by(_m.first_sequence)
_UNENDED = (
    select(_m.message_id, *_MESSAGE, _e.body, _e.blob)
    .join_from(*_THEIR_FIRST)
    .where(_OF_UNENDED)
    .order_by(_m.first_sequence)
)
_UNENDED_BYTES = select(func.sum(_e.size)).join_from(*_THEIR_FIRST).where(_OF_UNENDED)


def _make(connection: Connection) -> None:
    """Makes the tables."""
    tables.metadata.create_all(connection)
    version = connection.execute(select(tables.schema.c.version)).scalar()
    if version is None:
        connection.execute(tables.schema.insert().values(version=tables.VERSION))
    elif version != tables.VERSION:
        raise errors.FailedPrecondition(
            f"the conversations are kept as another version of the platform does it (tables {version}, here "
            f"{tables.VERSION}); run that one"
        )


def _joined(wanted: Select[Any], given: FromClause, columns: Sequence[Column[Any]]) -> Select[Any]:
    """The rows that have the given values. Not by IN: for that SQLite takes the index's first column alone."""
    same = and_(*(column == given.c[column.name] for column in columns))
    return wanted.select_from(given.join(columns[0].table, same))


def _taking(insert: Any) -> Any:
    """The statement that takes a lease: its row, made if there is none."""
    new = insert.values(
        leases=1, first_sequence=1, last_sequence=0, bytes=0, state_version=0, state_bytes=0, unended=0
    )
    taken = {"leases": _c.leases + 1, "holder": new.excluded.holder}
    return new.on_conflict_do_update(index_elements=list(_NAMES), set_=taken).returning(*_HEAD)


def _names(key: Key) -> dict[str, Any]:
    return {"principal": key.principal, "agent": key.agent, "conversation_id": key.conversation_id}


def _found(connection: Connection, key: Key) -> Any:
    head = connection.execute(_OF_KEY, _names(key)).one_or_none()
    if head is None:
        raise errors.ConversationNotFound(key.conversation_id)
    return head


def _take_again(connection: Connection, key: Key, holder: str, token: int) -> Any:
    """The lease of that token, or a new one if somebody had it since."""
    head = _found(connection, key)
    taken = tables.conversations.update().where(_c.id == head.id).values(holder=holder)
    if token != token_of(head.id, head.leases):
        taken = taken.values(leases=_c.leases + 1)
    return connection.execute(taken.returning(*_HEAD)).one()


def _check_size(connection: Connection, key: Key, head: Any) -> None:
    """Before what was said is read."""
    said: int = connection.execute(_UNENDED_BYTES, {"its_id": head.id}).scalar() or 0
    size = int(head.state_bytes + said + head.unended * _INFO_BYTES)
    if size > LEASE_BYTES:
        raise errors.ConversationFull(
            f"what waits in conversation '{key.conversation_id}' has {size} bytes, more than the {LEASE_BYTES} that "
            "a worker is told at once: cancel some of its messages, or delete it"
        )


def _events(conversation: int, after: int, *, backwards: bool) -> Select[Any]:
    wanted: Select[Any] = select(_e.sequence, _e.size, _e.body, _e.blob).where(_e.conversation == conversation)
    if not backwards:
        return wanted.where(_e.sequence > after).order_by(_e.sequence)
    wanted = wanted.order_by(_e.sequence.desc())
    return wanted.where(_e.sequence < after) if after else wanted


def _courses(conversation: int, before: int, limit: int, statuses: Sequence[int]) -> Select[Any]:
    """Messages with their first and last events. Which, is found before any event is looked at."""
    wanted: Select[Any] = select(_m.message_id, *_MESSAGE, func.count().over().label("there_are"))
    wanted = wanted.where(_m.conversation == conversation)
    if before:
        wanted = wanted.where(_m.first_sequence < before)
    if statuses:
        wanted = wanted.where(_m.status.in_([status | asked for status in statuses for asked in (0, ASKED)]))
    given = wanted.order_by(_m.first_sequence.desc()).limit(limit).subquery()
    first, last = tables.events.alias(), tables.events.alias()
    joined = given.join(first, and_(first.c.conversation == conversation, first.c.sequence == given.c.first_sequence))
    joined = joined.outerjoin(
        last, and_(last.c.conversation == conversation, last.c.sequence == given.c.last_sequence)
    )
    size = (first.c.size + func.coalesce(last.c.size, 0)).label("size")
    ends = (last.c.body.label("last_body"), last.c.blob.label("last_blob"))
    return (
        select(given, size, first.c.body, first.c.blob, *ends)
        .select_from(joined)
        .order_by(given.c.first_sequence.desc())
    )


def _span(connection: Connection, conversation: int, message_id: str) -> tuple[int, int] | None:
    """Between which sequence numbers a message's events lie."""
    wanted = select(_m.first_sequence, _m.last_sequence)
    wanted = wanted.where(_m.conversation == conversation, _m.message_id == message_id)
    row = connection.execute(wanted).one_or_none()
    return None if row is None else (row.first_sequence, row.last_sequence or _LARGEST)


def _expired(key: Key, after: int, first: int) -> errors.EventsExpired:
    return errors.EventsExpired(
        f"event {after + 1} of conversation '{key.conversation_id}' is not kept any more; the first that is has "
        f"number {first}",
        metadata={"first_sequence": str(first)},
    )


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


def _check(key: Key, message_id: str | None = None) -> None:
    if not is_id(key.conversation_id):
        raise errors.InvalidArgument("a conversation's id has 1 to 200 printable ASCII characters")
    if message_id and not is_id(message_id):
        raise errors.InvalidArgument("a message's id has 1 to 200 printable ASCII characters")
    _check_names(key.principal, key.agent)


def _check_names(*names: str) -> None:
    # PostgreSQL has none in texts.
    if any("\0" in name for name in names):
        raise errors.InvalidArgument("a name has a NUL character in it; leave it out")


def _token(changed_ns: int, number: int) -> str:
    return base64.urlsafe_b64encode(f"{changed_ns}:{number}".encode()).decode()


def _bounded(number: int) -> int:
    return max(-_LARGEST, min(number, _LARGEST))


def _read_token(token: str) -> tuple[int, int]:
    try:
        changed_ns, number = base64.urlsafe_b64decode(token).decode().split(":")
        # Numbers that a database has.
        return _bounded(int(changed_ns)), _bounded(int(number))
    except (ValueError, binascii.Error) as error:
        raise errors.InvalidArgument("page_token is not one that an answer had; leave it empty to begin") from error
