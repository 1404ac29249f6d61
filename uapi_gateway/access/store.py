"""The keys that there are, on disk: their public halves, names, roles and agents."""

import asyncio
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agentruntime import files

from uapi_gateway.access.keys import Key

_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    key_id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    role INTEGER NOT NULL,
    agents TEXT NOT NULL,
    public TEXT NOT NULL,
    created_at REAL NOT NULL,
    expires_at REAL,
    rate_per_second REAL NOT NULL,
    max_concurrency INTEGER NOT NULL
);
"""
_COLUMNS = "key_id, name, role, agents, public, created_at, expires_at, rate_per_second, max_concurrency"


class KeyStore:
    """An SQLite file, written by one thread, so that no disk holds up the event loop."""

    def __init__(self, path: Path) -> None:
        self._directory = path.parent
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys")
        self._database = self._thread.submit(_open, path).result()

    def load(self) -> list[Key]:
        """All keys, by name. Blocks."""
        return self._thread.submit(_load, self._database).result()

    async def save(self, key: Key) -> None:
        """On disk when it returns; takes the place of one of the same name.

        Raises:
            DiskFull: there is no room.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self.save_now, key)

    def save_now(self, key: Key) -> None:
        """The same, for a start: blocks. Only before anything else uses the store."""
        row = (
            key.key_id,
            key.name,
            key.role,
            json.dumps(key.agents),
            key.public,
            key.created_at,
            key.expires_at,
            key.rate_per_second,
            key.max_concurrency,
        )
        self._write(f"INSERT OR REPLACE INTO keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)  # noqa: S608 — constants

    async def remove(self, key_id: str) -> None:
        """On disk when it returns."""
        statement = "DELETE FROM keys WHERE key_id = ?"
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write, statement, (key_id,))

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        try:
            self._database.execute(statement, values)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise files.full(self._directory) from error

    def close(self) -> None:
        self._thread.submit(self._database.close).result()
        self._thread.shutdown()


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    path.chmod(0o600)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.executescript(_SCHEMA)
    return database


def _load(database: sqlite3.Connection) -> list[Key]:
    rows = database.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY name")  # noqa: S608 — constants
    return [Key(key_id, name, role, tuple(json.loads(agents)), *rest) for key_id, name, role, agents, *rest in rows]
