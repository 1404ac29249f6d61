"""The audit log: what was done on the platform and by whom, and what was refused, on disk before it is answered."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from agentruntime import errors, files, log

from uapi_gateway.kernel import audit_store, floods
from uapi_gateway.kernel.audit_store import AuditStore, Entry, Head, Record, Wanted
from uapi_gateway.kernel.floods import Floods

Outcome = Literal["allowed", "denied", "failed"]
_PAGE = 500
# Of a text that a caller may have had a say in.
_LONGEST_TEXT = 1024
# Between two looks whether a minute is over.
_LOOK_S = 5.0
_log = log.get("uapi_gateway.audit")


class AuditLog:
    """An SQLite file, written by one thread; records that come while it writes share the next write.

    Args:
        path: of the file.
        longest_bytes: its size at which the oldest records go.
        now: the time, in seconds since 1970.
    """

    def __init__(self, path: Path, *, longest_bytes: int = 256 * 2**20, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = now
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="audit-read")
        self._store = self._thread.submit(AuditStore, path, longest_bytes).result()
        self._head = self._store.head
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._floods = Floods()

    async def record(
        self, *, principal: str, action: str, target: str, outcome: Outcome, detail: str = "", worker_id: str = ""
    ) -> None:
        """Adds a record. It is on disk when this returns.

        Of one principal's denials and failures, `floods.EACH` a minute are; the rest is counted, and the count
        recorded when the minute is over.

        Args:
            principal: who did it: "local", "key:ci", "agent:my-agent".
            action: "AgentPool/RunAgent", "call", "egress".
            target: what it was done to.
            outcome: "failed" was allowed, and failed.
            detail: of a denial what would be needed; of a failure its reason. Never a value that was passed.
            worker_id: where an agent did it.

        Raises:
            DiskFull: there is no room, and it is not recorded.
            DataLoss: it could not be written for another reason.
        """
        if outcome != "allowed" and not self._admits(principal, action):
            return
        texts = (_short(text) for text in (principal, action, target, outcome, detail, worker_id))
        await self._append(Entry(int(self._now() * 1e6), *texts))

    def _admits(self, principal: str, action: str) -> bool:
        self._count_out(at_once=False)
        return self._floods.admits(principal, action)

    def _count_out(self, *, at_once: bool) -> list[asyncio.Future[None]]:
        """Has what was only counted recorded, if the minute is over."""
        now = self._now()
        return [
            self._enqueue(Entry(int(now * 1e6), _short(each.principal), each.action, "", "denied", _more(each.count)))
            for each in self._floods.over(now, at_once=at_once)
        ]

    async def _append(self, entry: Entry) -> None:
        # Whoever hangs up meanwhile is recorded all the same.
        await asyncio.shield(self._enqueue(entry))

    def _enqueue(self, entry: Entry) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        self._waiting.append((entry, done))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        return done

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                failure: Exception | None = None
                try:
                    await loop.run_in_executor(self._thread, self._store.append, [entry for entry, _ in batch])
                # Whatever it is, those who wait must hear of it, and the next are tried again.
                except Exception as error:
                    _log.error("the audit log cannot be written", exc_info=error)
                    failure = self._failure(error)
                self._head = self._store.head
                for _, done in batch:
                    if failure is not None:
                        done.set_exception(failure)
                    else:
                        done.set_result(None)
                self._news.set()
                self._news = asyncio.Event()
        finally:
            self._writing = None

    def _failure(self, error: Exception) -> errors.AgentError:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return files.full(self._path.parent)
        return errors.DataLoss(
            f"the audit log {self._path} cannot be written, and nothing may be done unrecorded; see the gateway's log"
        )

    async def read(self, wanted: Wanted, *, newest: int = 0) -> list[Record]:
        """The next records that match, oldest first, or the newest of them; empty at the end."""
        limit = newest or _PAGE
        return await asyncio.get_running_loop().run_in_executor(
            self._readers, _read, self._path, wanted, limit, bool(newest)
        )

    async def beyond(self, sequence: int) -> None:
        """Until there is a record after that one."""
        while self._head.sequence <= sequence:
            await self._news.wait()

    @property
    def head(self) -> Head:
        """The newest record that is on disk."""
        return self._head

    async def verify(self) -> tuple[int, Head]:
        """How many records there are and the last one, when every hash is right.

        Raises:
            DataLoss: a record was changed or is missing; names the first.
        """
        return await asyncio.get_running_loop().run_in_executor(self._readers, _verify, self._path, self._head)

    async def run(self) -> None:
        """Records what was only counted, as its minute is over."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self._count_out(at_once=False)

    async def close(self) -> None:
        """Writes what is left, and ends."""
        await asyncio.gather(*self._count_out(at_once=True), return_exceptions=True)
        if self._writing is not None:
            await self._writing
        await asyncio.get_running_loop().run_in_executor(self._thread, self._store.close)
        self._thread.shutdown()
        self._readers.shutdown()


def _more(count: int) -> str:
    return f"and {count} more, within a minute of the one before, of which {floods.EACH} are recorded"


def _short(text: str) -> str:
    """A text that the database can hold: no half of a surrogate pair, and not endless."""
    return text[:_LONGEST_TEXT].encode(errors="replace").decode()


def _read(path: Path, wanted: Wanted, limit: int, newest: bool) -> list[Record]:
    database = audit_store.reading(path)
    try:
        return audit_store.read(database, wanted, limit, newest=newest)
    finally:
        database.close()


def _verify(path: Path, known: Head) -> tuple[int, Head]:
    database = audit_store.reading(path)
    try:
        return audit_store.verify(database, known)
    finally:
        database.close()
