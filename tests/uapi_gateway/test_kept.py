"""What becomes of a small file of the gateway's own."""

import contextlib
import sqlite3
from pathlib import Path

import pytest
from agentruntime.errors import DiskFull

from uapi_gateway.kept import KeptTables

SCHEMA = "CREATE TABLE IF NOT EXISTS things (name TEXT PRIMARY KEY, body BLOB);"
INSERT = "INSERT INTO things VALUES (?, ?)"


def names(database: sqlite3.Connection) -> list[str]:
    return [name for (name,) in database.execute("SELECT name FROM things ORDER BY name")]


async def test_a_full_disk_is_said_to_be_full_and_what_was_written_stays(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    with contextlib.closing(KeptTables(path, SCHEMA)) as tables:
        tables.write_now(INSERT, ("before", b""))
        # The same error as of a disk that is full: SQLITE_FULL, https://www.sqlite.org/rescode.html#full
        await tables.write("PRAGMA max_page_count = 1", ())
        with pytest.raises(DiskFull, match=f"the disk that holds {tmp_path}"):
            await tables.write(INSERT, ("a", bytes(100_000)))
        await tables.write("PRAGMA max_page_count = 10000", ())
        await tables.write(INSERT, ("after", b""))
    with contextlib.closing(KeptTables(path, SCHEMA)) as tables:
        assert tables.read(names) == ["after", "before"]


def test_it_is_the_users_alone_and_other_errors_are_told_as_they_are(tmp_path: Path) -> None:
    with contextlib.closing(KeptTables(tmp_path / "g.db", SCHEMA)) as tables:
        assert (tmp_path / "g.db").stat().st_mode & 0o777 == 0o600
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            tables.write_now("INSERT INTO others VALUES (1)", ())
