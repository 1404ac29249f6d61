"""An SQLite file of the gateway's own, used by one thread, so that no disk holds up the event loop."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from agentruntime import files

_Read = TypeVar("_Read")


class KeptTables:
    """Some tables, small enough to be read whole when the gateway starts.

    Args:
        path: of the file, which is for the platform's user alone.
        schema: SQL that makes what is not there yet.
    """

    def __init__(self, path: Path, schema: str) -> None:
        self._directory = path.parent
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=path.stem)
        self._database = self._thread.submit(_open, path, schema).result()

    def read(self, load: Callable[[sqlite3.Connection], _Read]) -> _Read:
        """What `load` makes of the tables. Blocks."""
        return self._thread.submit(load, self._database).result()

    async def write(self, statement: str, values: tuple[object, ...]) -> None:
        """On disk when it returns.

        Raises:
            DiskFull: there is no room.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self.write_now, statement, values)

    def write_now(self, statement: str, values: tuple[object, ...]) -> None:
        """The same, for a start: blocks. Only before anything else uses the file."""
        try:
            self._database.execute(statement, values)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise files.full(self._directory) from error

    def close(self) -> None:
        self._thread.submit(self._database.close).result()
        self._thread.shutdown()


def _open(path: Path, schema: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    path.chmod(0o600)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.executescript(schema)
    return database
