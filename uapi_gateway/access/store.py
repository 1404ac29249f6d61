"""What there is of keys and of grants of certificates, on disk: public halves, names, roles and agents."""

import json
import sqlite3
from pathlib import Path

from uapi_gateway.access.certified import Certified
from uapi_gateway.access.keys import Key
from uapi_gateway.kept import KeptTables

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
CREATE TABLE IF NOT EXISTS certificates (
    uri TEXT PRIMARY KEY,
    role INTEGER NOT NULL,
    agents TEXT NOT NULL,
    granted_at REAL NOT NULL
);
"""
_COLUMNS = "key_id, name, role, agents, public, created_at, expires_at, rate_per_second, max_concurrency"


_SAVE = f"INSERT OR REPLACE INTO keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 — constants


class KeyStore:
    """All of them, in a file."""

    def __init__(self, path: Path) -> None:
        self._tables = KeptTables(path, _SCHEMA)

    def load(self) -> list[Key]:
        """All keys, by name. Blocks."""
        return self._tables.read(_load)

    async def save(self, key: Key) -> None:
        """On disk when it returns; takes the place of one of the same name.

        Raises:
            DiskFull: there is no room.
        """
        await self._tables.write(_SAVE, _row(key))

    def save_now(self, key: Key) -> None:
        """The same, for a start: blocks. Only before anything else uses the store."""
        self._tables.write_now(_SAVE, _row(key))

    async def remove(self, key_id: str) -> None:
        """On disk when it returns."""
        await self._tables.write("DELETE FROM keys WHERE key_id = ?", (key_id,))

    def load_certified(self) -> list[Certified]:
        """What is said of certificates, by URI. Blocks."""
        return self._tables.read(_load_certified)

    async def save_certified(self, said: Certified) -> None:
        """On disk when it returns; takes the place of what was said of the same one.

        Raises:
            DiskFull: there is no room.
        """
        row = (said.uri, said.role, json.dumps(said.agents), said.granted_at)
        await self._tables.write("INSERT OR REPLACE INTO certificates VALUES (?, ?, ?, ?)", row)

    async def remove_certified(self, uri: str) -> None:
        """On disk when it returns."""
        await self._tables.write("DELETE FROM certificates WHERE uri = ?", (uri,))

    def close(self) -> None:
        self._tables.close()


def _row(key: Key) -> tuple[object, ...]:
    """As _COLUMNS has it."""
    return (
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


def _load(database: sqlite3.Connection) -> list[Key]:
    rows = database.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY name")  # noqa: S608 — constants
    return [Key(key_id, name, role, tuple(json.loads(agents)), *rest) for key_id, name, role, agents, *rest in rows]


def _load_certified(database: sqlite3.Connection) -> list[Certified]:
    rows = database.execute("SELECT uri, role, agents, granted_at FROM certificates ORDER BY uri")
    return [Certified(uri, role, tuple(json.loads(agents)), granted_at) for uri, role, agents, granted_at in rows]
