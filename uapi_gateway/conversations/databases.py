"""What SQLite and PostgreSQL do each in its own way: connections, transactions, and statements about many rows.

What is done within a transaction is a function of a `Connection`, the same for both. For SQLite it runs in a thread,
all of it at once: a turn of the event loop for every statement costs ten times what SQLite does (decision 0070).
"""

import asyncio
import contextlib
import errno
import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from agentruntime.errors import StoreUnavailable
from sqlalchemy import (
    URL,
    BindParameter,
    Column,
    Connection,
    Dialect,
    Engine,
    FromClause,
    Table,
    bindparam,
    column,
    create_engine,
    event,
    func,
    make_url,
    select,
    values,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.sql import ClauseElement

T = TypeVar("T")
# A statement that was made once and skips SQLAlchemy's handling of parameters, which would cost as much as the
# database: what it does with rows of values, in the order that it was made for.
Write = Callable[[Connection, Sequence[tuple[Any, ...]]], object]
Read = Callable[[Connection, Sequence[tuple[Any, ...]]], Sequence[Any]]

# Threads that read SQLite beside each other; connections to PostgreSQL.
READERS = 4
CONNECTIONS = 8
# All statements on the way of a message look rows up. A plan that was made while the tables were small, and kept,
# would read all of them, or by another index, until they are analysed.
_BY_INDEX = {
    "plan_cache_mode": "force_custom_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
# A statement or a connection that takes longer is given up.
PATIENCE_S = 20
_SYNCED = "PRAGMA synchronous = FULL"
_BUSY = f"PRAGMA busy_timeout = {PATIENCE_S * 1000}"
# Rows in one of SQLite's statements: far from its 32766 parameters (https://sqlite.org/limits.html).
_ROWS = 256
# Errors that trying again does not help against.
_OURS = (ProgrammingError, IntegrityError, DataError)


class Database(Protocol):
    """One of them."""

    # Whether rows must be locked by whoever reads them to write them.
    locks: bool

    async def write(self, work: Callable[[Connection], T], *, synced: bool = True) -> T:
        """Does work in a transaction, which is on disk when this returns; nothing of it is if the work raises.

        Args:
            work: what is to be done.
            synced: False if it may be undone when the machine goes down, with all who know of it.

        Raises:
            StoreUnavailable: the database cannot be reached, has no room, or did not do it now.
        """

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Does work that only reads, each statement for itself. Raises as `write`."""

    def reading(self, columns: Sequence[Column[Any]], statement: Callable[[FromClause], ClauseElement]) -> Read:
        """A SELECT from a table of rows with such columns, which it is given."""

    def insert(self, table: Table) -> Any:
        """An INSERT that has `on_conflict_do_update`."""

    def inserting(self, table: Table, update: Sequence[Column[Any]] = ()) -> Write:
        """Inserts rows with all columns of a table; of one that is there already these columns are updated."""

    def updating(self, columns: Sequence[Column[Any]]) -> Write:
        """Updates a table's rows; the last of the columns is the `id`, which says which."""

    async def scrub(self) -> bool:
        """Has what was deleted overwritten on disk, as far as the database does that; whether it is done."""

    async def close(self) -> None:
        """Ends all connections."""


class Sqlite:
    """A file, in WAL mode, each commit synced. One connection writes, and a few read beside it."""

    locks = False

    def __init__(self, url: URL) -> None:
        if not url.database:
            raise ValueError(f"{url} names no file")
        self._path = Path(url.database)
        self._writer = _sqlite_engine(url, 1, "PRAGMA secure_delete = ON")
        self._reader = _sqlite_engine(url, READERS, "PRAGMA query_only = ON")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="conversations-writer")
        self._reading = ThreadPoolExecutor(READERS, thread_name_prefix="conversations-reader")

    async def write(self, work: Callable[[Connection], T], *, synced: bool = True) -> T:
        """As in the protocol. Goes on if the caller is cancelled."""
        return await asyncio.get_running_loop().run_in_executor(self._writing, self._write, work, synced)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """As in the protocol."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, self._read, work)

    def _write(self, work: Callable[[Connection], T], synced: bool) -> T:
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT, 0o600))
        with _telling(), self._writer.connect() as connection:
            if synced:
                return _transaction(connection, work)
            connection.exec_driver_sql("PRAGMA synchronous = NORMAL")
            try:
                return _transaction(connection, work)
            finally:
                connection.exec_driver_sql(_SYNCED)

    def _read(self, work: Callable[[Connection], T]) -> T:
        with _telling(), self._reader.connect() as connection:
            return work(connection)

    def reading(self, columns: Sequence[Column[Any]], statement: Callable[[FromClause], ClauseElement]) -> Read:
        """As in the protocol."""
        return self._made(statement(_given(columns)), columns)

    def insert(self, table: Table) -> Any:
        """As in the protocol."""
        return sqlite.insert(table)

    def inserting(self, table: Table, update: Sequence[Column[Any]] = ()) -> Write:
        """As in the protocol."""
        columns = list(table.columns)
        insert = sqlite.insert(table).values([dict(zip(table.columns.keys(), _parameters(columns), strict=True))])
        return self._made(_updating_known(insert, table, update), columns)

    def updating(self, columns: Sequence[Column[Any]]) -> Write:
        """As in the protocol."""
        return self._made(_update_from(_given(columns), columns), columns)

    def _made(self, statement: ClauseElement, columns: Sequence[Column[Any]]) -> Read:
        return _in_pieces(_compiled(statement, self._writer.dialect, columns), len(columns))

    async def scrub(self) -> bool:
        """`secure_delete` has overwritten rows in new pages; this takes them into the file and empties the WAL."""

        def checkpoint() -> bool:
            with _telling(), self._writer.connect() as connection:
                # Writers wait meanwhile: it does not for long, if somebody reads.
                connection.exec_driver_sql("PRAGMA busy_timeout = 500")
                try:
                    return not connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar_one()
                finally:
                    connection.exec_driver_sql(_BUSY)

        return await asyncio.get_running_loop().run_in_executor(self._writing, checkpoint)

    async def close(self) -> None:
        """As in the protocol; after what is under way."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        for threads, engine in ((self._reading, self._reader), (self._writing, self._writer)):
            threads.shutdown()
            engine.dispose()


class Postgresql:
    """A server. Connections that it ends are made anew."""

    locks = True

    def __init__(self, url: URL) -> None:
        self._engine = create_async_engine(
            url,
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=PATIENCE_S,
            connect_args={"timeout": PATIENCE_S, "command_timeout": PATIENCE_S, "server_settings": _BY_INDEX},
        )
        self._reader = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    async def write(self, work: Callable[[Connection], T], *, synced: bool = True) -> T:
        """As in the protocol. Always synced: a server may go down alone."""
        with _telling():
            async with self._engine.begin() as connection:
                return await connection.run_sync(work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """As in the protocol."""
        with _telling():
            async with self._reader.connect() as connection:
                return await connection.run_sync(work)

    def reading(self, columns: Sequence[Column[Any]], statement: Callable[[FromClause], ClauseElement]) -> Read:
        """As in the protocol."""
        return self._made(statement(_unnested(columns)), columns)

    def insert(self, table: Table) -> Any:
        """As in the protocol."""
        return postgresql.insert(table)

    def inserting(self, table: Table, update: Sequence[Column[Any]] = ()) -> Write:
        """As in the protocol."""
        columns = list(table.columns)
        insert = postgresql.insert(table).from_select(columns, select(_unnested(columns)))
        return self._made(_updating_known(insert, table, update), columns)

    def updating(self, columns: Sequence[Column[Any]]) -> Write:
        """As in the protocol."""
        return self._made(_update_from(_unnested(columns), columns), columns)

    def _made(self, statement: ClauseElement, columns: Sequence[Column[Any]]) -> Read:
        """A statement that is given its rows as arrays, one for each column."""
        sql = _compiled(statement, self._engine.dialect, columns)

        def run(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> Sequence[Any]:
            if not rows:
                return []
            result = connection.exec_driver_sql(sql, tuple(list(values) for values in zip(*rows, strict=True)))
            return result.all() if result.returns_rows else []

        return run

    async def scrub(self) -> bool:
        """Deleted rows are the server's: its vacuum frees them."""
        return True

    async def close(self) -> None:
        """As in the protocol."""
        await self._engine.dispose()


def database(url: str) -> Database:
    """The database of a URL: "sqlite:////path/of/file.db" or "postgresql://user:password@host/name".

    Raises:
        ValueError: it is another one.
    """
    parsed = make_url(url)
    match parsed.get_backend_name():
        case "sqlite":
            return Sqlite(parsed.set(drivername="sqlite+pysqlite"))
        case "postgresql":
            return Postgresql(parsed.set(drivername="postgresql+asyncpg"))
        case other:
            raise ValueError(f"conversations cannot be kept in {other}; use sqlite:/// or postgresql://")


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """Turns what drivers raise into `StoreUnavailable`; but what is a bug of ours."""
    try:
        yield
    except (*_OURS, sqlite3.ProgrammingError, sqlite3.IntegrityError):
        raise
    except (DBAPIError, sqlite3.DatabaseError, PoolTimeoutError, OSError) as error:
        inner = error.orig if isinstance(error, DBAPIError) else error
        full = getattr(inner, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        if full or (isinstance(inner, OSError) and inner.errno == errno.ENOSPC):
            # It passes, as an outage does, and workers keep meanwhile what they have.
            raise StoreUnavailable("the disk that conversations are kept on is full; free some of it") from error
        why = str(inner) or "no answer in time"
        raise StoreUnavailable(f"conversations cannot be read or written now: {why}") from error


def _transaction(connection: Connection, work: Callable[[Connection], T]) -> T:
    # One that reads first could not get to write.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.exec_driver_sql("COMMIT")
    except BaseException:
        with contextlib.suppress(DBAPIError):  # after some errors SQLite itself has rolled back
            connection.exec_driver_sql("ROLLBACK")
        raise
    return result


def _sqlite_engine(url: URL, connections: int, pragma: str) -> Engine:
    # Transactions are begun and ended by statements of ours.
    engine = create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=PATIENCE_S,
        connect_args={"check_same_thread": False},  # closed by another one, when all are done
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        for statement in (
            _BUSY,
            "PRAGMA journal_mode = WAL",
            _SYNCED,
            "PRAGMA temp_store = MEMORY",
            pragma,
        ):
            cursor.execute(statement)
        cursor.close()

    return engine


def _in_pieces(sql: str, columns: int) -> Read:
    """Runs statements of 256, 128, 64 … rows: SQLite's `executemany` gives up the interpreter's lock for every row,
    and waits for it again.

    Args:
        sql: of a statement with VALUES of one row.
        columns: of that row.
    """
    row = f"({', '.join('?' * columns)})"
    start, end = sql.split(f"VALUES {row}")
    made: dict[int, str] = {}

    def run(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> Sequence[Any]:
        # What SQLAlchemy does around a statement costs more than most of these.
        driver: Any = connection.connection.driver_connection
        found: list[Any] = []
        done = 0
        while left := len(rows) - done:
            count = min(_ROWS, 1 << (left.bit_length() - 1))
            if count not in made:
                made[count] = f"{start}VALUES {', '.join([row] * count)}{end}"
            flat = tuple(itertools.chain.from_iterable(rows[done : done + count]))
            found += driver.execute(made[count], flat).fetchall()
            done += count
        return found

    return run


def _parameters(columns: Sequence[Column[Any]]) -> list[BindParameter[Any]]:
    return [bindparam(f"c{n}", type_=one.type) for n, one in enumerate(columns)]


def _given(columns: Sequence[Column[Any]]) -> FromClause:
    """A table of parameters, in one row."""
    row = tuple(_parameters(columns))
    return values(*(column(one.name, one.type) for one in columns), name="given").data([row]).cte("given")


def _unnested(columns: Sequence[Column[Any]]) -> FromClause:
    """A table of parameters, an array for each column."""
    arrays = (bindparam(f"c{n}", type_=postgresql.ARRAY(one.type)) for n, one in enumerate(columns))
    rows = func.unnest(*arrays).table_valued(*(column(one.name, one.type) for one in columns), name="given")
    return rows.render_derived()


def _updating_known(insert: Any, table: Table, update: Sequence[Column[Any]]) -> Any:
    if not update:
        return insert
    changes = {one.name: insert.excluded[one.name] for one in update}
    return insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=changes)


def _update_from(given: FromClause, columns: Sequence[Column[Any]]) -> ClauseElement:
    changes = {one: given.c[one.name] for one in columns[:-1]}
    return columns[-1].table.update().values(changes).where(columns[-1] == given.c[columns[-1].name])


def _compiled(statement: ClauseElement, dialect: Dialect, columns: Sequence[Column[Any]]) -> str:
    """Its SQL, which takes its parameters in the order of the columns."""
    compiled: Any = statement.compile(dialect=dialect)
    order = compiled.positiontup
    assert [name.split("_")[0] for name in order] == [f"c{n}" for n in range(len(columns))], order
    return str(compiled)
