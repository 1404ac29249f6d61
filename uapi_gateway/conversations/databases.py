"""What SQLite and PostgreSQL do each in its own way: connections, transactions, and statements about many rows."""

import contextlib
import errno
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agentruntime.errors import DiskFull, StoreUnavailable
from sqlalchemy import (
    URL,
    Column,
    Dialect,
    FromClause,
    Table,
    bindparam,
    event,
    func,
    make_url,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.dml import Insert

# SQLite readers beside each other, each with a thread; PostgreSQL's connections.
READERS = 4
CONNECTIONS = 8
# A statement or a connection that takes longer is given up.
PATIENCE_S = 20


@dataclass(frozen=True)
class Rows:
    """Rows that a statement is given: a table with the columns that were asked for."""

    table: FromClause
    types: tuple[Any, ...]


@dataclass(frozen=True)
class Bulk:
    """A statement that writes many rows. It is made once, and its rows skip SQLAlchemy's handling of parameters,
    which would cost as much as the database."""

    sql: str
    # As arrays, a column each; otherwise a row each.
    transposed: bool

    async def run(self, connection: AsyncConnection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Writes them.

        Args:
            connection: in a transaction.
            rows: with their values in the order that the statement was made with.
        """
        if not rows:
            return
        if self.transposed:
            await connection.exec_driver_sql(self.sql, tuple(list(column) for column in zip(*rows, strict=True)))
        else:
            await connection.exec_driver_sql(self.sql, list(rows))


class Database(Protocol):
    """One of them."""

    # Whose transactions write one after the other, so that rows need no locks.
    single_writer: bool

    def write(self) -> contextlib.AbstractAsyncContextManager[AsyncConnection]:
        """A transaction that writes; on disk at its end."""

    def read(self) -> contextlib.AbstractAsyncContextManager[AsyncConnection]:
        """A connection that reads, each statement for itself."""

    def rows(self, *columns: Column[Any]) -> Rows:
        """Rows with values of these columns, for a SELECT of Core."""

    def values(self, rows: Sequence[tuple[Any, ...]]) -> Mapping[str, Any]:
        """The parameters of a SELECT from `rows`."""

    def insert(self, table: Table) -> Insert:
        """An INSERT that has `on_conflict_do_update`."""

    def insert_many(self, table: Table, *, update: Sequence[Column[Any]] = ()) -> Bulk:
        """Inserts rows with all columns of a table, in their order; one that is there gets the columns to update."""

    def update_many(self, table: Table, *columns: Column[Any]) -> Bulk:
        """Updates columns of rows: of each these, and last its `id`."""

    async def scrub(self) -> bool:
        """Has what was deleted overwritten on disk, as far as the database does that; whether it is done."""

    async def close(self) -> None:
        """Ends all connections."""


class Sqlite:
    """A file, in WAL mode, each commit synced. One connection writes, and a few read beside it."""

    single_writer = True

    def __init__(self, url: URL) -> None:
        if not url.database:
            raise ValueError(f"{url} names no file")
        self._path = Path(url.database)
        self._writer = _sqlite_engine(url, 1, "PRAGMA secure_delete = ON")
        self._reader = _sqlite_engine(url, READERS, "PRAGMA query_only = ON")
        self._dialect = self._writer.dialect

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """BEGIN IMMEDIATE: a transaction that reads first could not get to write."""
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT, 0o600))
        with telling():
            async with self._writer.connect() as connection:
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
                try:
                    yield connection
                    await connection.exec_driver_sql("COMMIT")
                except BaseException:
                    # A connection that was given up in the middle has lost its transaction already.
                    if not connection.invalidated:
                        with contextlib.suppress(DBAPIError):  # SQLite itself rolls back after some errors
                            await connection.exec_driver_sql("ROLLBACK")
                    raise

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """As in the protocol."""
        with telling():
            async with self._reader.connect() as connection:
                yield connection

    def rows(self, *columns: Column[Any]) -> Rows:
        """As JSON: one parameter, whatever there is in it, and so one statement to compile."""
        each = func.json_each(bindparam("rows")).table_valued("value")
        values = (func.json_extract(each.c.value, f"$[{n}]").label(column.name) for n, column in enumerate(columns))
        return Rows(select(*values).subquery("given"), ())

    def values(self, rows: Sequence[tuple[Any, ...]]) -> Mapping[str, Any]:
        """As in the protocol."""
        return {"rows": json.dumps(rows)}

    def insert(self, table: Table) -> Insert:
        """As in the protocol."""
        return sqlite.insert(table)

    def insert_many(self, table: Table, *, update: Sequence[Column[Any]] = ()) -> Bulk:
        """As in the protocol."""
        made = sqlite.insert(table)
        if update:
            made = made.on_conflict_do_update(
                index_elements=list(table.primary_key),
                set_={column.name: made.excluded[column.name] for column in update},
            )
        return Bulk(_compiled(made, self._dialect, [column.name for column in table.columns]), False)

    def update_many(self, table: Table, *columns: Column[Any]) -> Bulk:
        """As in the protocol."""
        made = table.update().values({column: bindparam(f"new_{column.name}") for column in columns})
        made = made.where(table.c.id == bindparam("its_id"))
        order = [column.name for column in table.columns if column in set(columns)]
        assert order == [column.name for column in columns], "columns are given in the table's order"
        return Bulk(_compiled(made, self._dialect, [*(f"new_{name}" for name in order), "its_id"]), False)

    async def scrub(self) -> bool:
        """`secure_delete` has overwritten rows in new pages; this takes them into the file and empties the WAL."""
        with telling():
            async with self._writer.connect() as connection:
                busy = (await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")).scalar_one()
        return not busy

    async def close(self) -> None:
        """As in the protocol."""
        await self._reader.dispose()
        await self._writer.dispose()


class Postgresql:
    """A server. Connections that it ends are made anew."""

    single_writer = False

    def __init__(self, url: URL) -> None:
        self._engine = create_async_engine(
            url,
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=PATIENCE_S,
            connect_args={"timeout": PATIENCE_S, "command_timeout": PATIENCE_S},
        )
        self._reader = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._dialect = self._engine.dialect

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """As in the protocol."""
        with telling():
            async with self._engine.begin() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """As in the protocol."""
        with telling():
            async with self._reader.connect() as connection:
                yield connection

    def rows(self, *columns: Column[Any]) -> Rows:
        """As arrays, one for each column."""
        names = [column.name for column in columns]
        arrays = (bindparam(f"c{n}", type_=postgresql.ARRAY(column.type)) for n, column in enumerate(columns))
        given = func.unnest(*arrays).table_valued(
            *(Column(column.name, column.type) for column in columns), name="given"
        )
        return Rows(given.render_derived(), tuple(names))

    def values(self, rows: Sequence[tuple[Any, ...]]) -> Mapping[str, Any]:
        """As in the protocol."""
        return {f"c{n}": list(column) for n, column in enumerate(zip(*rows, strict=True))}

    def insert(self, table: Table) -> Insert:
        """As in the protocol."""
        return postgresql.insert(table)

    def insert_many(self, table: Table, *, update: Sequence[Column[Any]] = ()) -> Bulk:
        """As in the protocol."""
        columns = list(table.columns)
        given = self.rows(*columns).table
        made = postgresql.insert(table).from_select([column.name for column in columns], select(given))
        if update:
            made = made.on_conflict_do_update(
                index_elements=list(table.primary_key),
                set_={column.name: made.excluded[column.name] for column in update},
            )
        return Bulk(_compiled(made, self._dialect, [f"c{n}" for n in range(len(columns))]), True)

    def update_many(self, table: Table, *columns: Column[Any]) -> Bulk:
        """As in the protocol."""
        given = self.rows(*columns, table.c.id).table
        made = table.update().values({column: given.c[column.name] for column in columns})
        made = made.where(table.c.id == given.c.id)
        return Bulk(_compiled(made, self._dialect, [f"c{n}" for n in range(len(columns) + 1)]), True)

    async def scrub(self) -> bool:
        """Deleted rows are the server's: its vacuum frees them."""
        return True

    async def close(self) -> None:
        """As in the protocol."""
        await self._engine.dispose()


def database(url: str) -> Database:
    """The database of a URL: "sqlite:///path/of/file.db" or "postgresql://user:password@host/name".

    Raises:
        ValueError: it is another one.
    """
    parsed = make_url(url)
    match parsed.get_backend_name():
        case "sqlite":
            return Sqlite(parsed.set(drivername="sqlite+aiosqlite"))
        case "postgresql":
            return Postgresql(parsed.set(drivername="postgresql+asyncpg"))
        case other:
            raise ValueError(f"conversations cannot be kept in {other}; use sqlite:/// or postgresql://")


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Turns what drivers raise into errors of ours.

    Raises:
        DiskFull: there is no room.
        StoreUnavailable: the database cannot be reached, or did not do it now.
    """
    try:
        yield
    except (ProgrammingError, IntegrityError):
        raise  # a bug of ours
    except (DBAPIError, PoolTimeoutError, OSError) as error:
        inner = error.orig if isinstance(error, DBAPIError) else error
        if getattr(inner, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL or (
            isinstance(inner, OSError) and inner.errno == errno.ENOSPC
        ):
            raise DiskFull("the disk that conversations are kept on is full; free some of it") from error
        raise StoreUnavailable(f"conversations cannot be read or written now: {inner}") from error


def _sqlite_engine(url: URL, connections: int, pragma: str) -> AsyncEngine:
    # Transactions are begun and ended by statements: the driver's own come too late, and cost a thread's turn each.
    engine = create_async_engine(
        url,
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=PATIENCE_S,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        for statement in (
            f"PRAGMA busy_timeout = {PATIENCE_S * 1000}",
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "PRAGMA temp_store = MEMORY",
            pragma,
        ):
            cursor.execute(statement)
        cursor.close()

    return engine


def _compiled(statement: ClauseElement, dialect: Dialect, parameters: list[str]) -> str:
    """Its SQL, which takes its parameters in that order."""
    compiled: Any = statement.compile(dialect=dialect)
    assert compiled.positiontup == parameters, (compiled.positiontup, parameters)
    return str(compiled)
