"""The audit log on disk: rows that are only ever added, each bound to the one before it by a hash.

The triggers keep a mistake from changing a row, and the hashes show who has changed one on purpose. When the file
has its size, the oldest rows go: the *seal* says which is the first that is left and what it follows, and so does a
row of its own, so that the chain itself says what was removed.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from agentruntime import log
from agentruntime.errors import DataLoss

_log = log.get("uapi_gateway.audit")
# What the first row of all follows.
_BEGINNING = bytes(32)
# Of the rows that there are, those that go when the file is full: rarely, and many at once.
_REMOVED_SHARE = 4
_RETENTION = "audit/retention"
_PLATFORM = "platform"
_COLUMNS = "sequence, time_micros, principal, action, target, outcome, detail, worker_id, hash"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    sequence INTEGER PRIMARY KEY, time_micros INTEGER NOT NULL, principal TEXT NOT NULL, action TEXT NOT NULL,
    target TEXT NOT NULL, outcome TEXT NOT NULL, detail TEXT NOT NULL, worker_id TEXT NOT NULL, hash BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS seals (first_sequence INTEGER PRIMARY KEY, follows BLOB NOT NULL) STRICT;
CREATE TRIGGER IF NOT EXISTS no_change BEFORE UPDATE ON records
    BEGIN SELECT RAISE(ABORT, 'the audit log is only ever added to'); END;
CREATE TRIGGER IF NOT EXISTS no_removal BEFORE DELETE ON records
    WHEN OLD.sequence >= (SELECT coalesce(max(first_sequence), 0) FROM seals)
    BEGIN SELECT RAISE(ABORT, 'the audit log is only ever added to'); END;
CREATE TRIGGER IF NOT EXISTS no_other_seal BEFORE UPDATE ON seals
    BEGIN SELECT RAISE(ABORT, 'the audit log is only ever added to'); END;
CREATE TRIGGER IF NOT EXISTS no_seal_less BEFORE DELETE ON seals
    BEGIN SELECT RAISE(ABORT, 'the audit log is only ever added to'); END;
"""


@dataclass(frozen=True)
class Entry:
    """What is recorded: who did what to what, when, and what came of it."""

    time_micros: int
    principal: str
    action: str
    target: str
    # "allowed", "denied" or "failed".
    outcome: str
    detail: str = ""
    worker_id: str = ""


@dataclass(frozen=True)
class Record:
    """An entry in its place in the chain."""

    sequence: int
    entry: Entry
    hash: bytes


@dataclass(frozen=True)
class Head:
    """The newest record: its number, 0 if there is none, and its hash."""

    sequence: int = 0
    hash: bytes = _BEGINNING


@dataclass(frozen=True)
class Wanted:
    """Which records somebody wants to read; "" means any."""

    after: int = 0
    principal: str = ""
    action: str = ""
    denied_only: bool = False


def digest(follows: bytes, sequence: int, entry: Entry) -> bytes:
    """The hash of a record: SHA-256 of the one before it and of its content as JSON, which has one form."""
    content = json.dumps([sequence, *astuple(entry)], separators=(",", ":"))
    return hashlib.sha256(follows + content.encode()).digest()


class AuditStore:
    """The file, for one thread that writes. Whoever reads opens it again, see `reading`."""

    def __init__(self, path: Path, longest_bytes: int) -> None:
        self._longest_bytes = longest_bytes
        path.touch(mode=0o600)
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.executescript(_SCHEMA)
        last = self._database.execute("SELECT sequence, hash FROM records ORDER BY sequence DESC LIMIT 1").fetchone()
        self.head = Head(*last) if last else Head()

    def append(self, entries: Sequence[Entry]) -> None:
        """On disk when it returns, all of them or none."""
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            head = self._insert(self.head, entries)
        self.head = head
        try:
            if self._size_bytes() > self._longest_bytes:
                self._shorten(entries)
        except Exception as error:
            # The entries are on disk, whatever became of the oldest; the next write tries again.
            _log.error("the audit log could not be shortened", exc_info=error)

    def _insert(self, head: Head, entries: Iterable[Entry]) -> Head:
        for entry in entries:
            sequence = head.sequence + 1
            head = Head(sequence, digest(head.hash, sequence, entry))
            row = (sequence, *astuple(entry), head.hash)
            self._database.execute(f"INSERT INTO records ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?)", row)  # noqa: S608 — constants
        return head

    def _size_bytes(self) -> int:
        """Of what is used; pages that removed rows have left are used again."""
        pages, free, page_bytes = (
            int(self._database.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * page_bytes

    def _shorten(self, entries: Sequence[Entry]) -> None:
        """Removes the oldest rows, seals what is left, and says so in a row."""
        (first,) = self._database.execute("SELECT min(sequence) FROM records").fetchone()
        kept = first + (self.head.sequence - first + 1) // _REMOVED_SHARE
        if kept <= first:
            return
        (follows,) = self._database.execute("SELECT hash FROM records WHERE sequence = ?", (kept - 1,)).fetchone()
        now = max(entry.time_micros for entry in entries)
        said = Entry(now, _PLATFORM, _RETENTION, f"{first} to {kept - 1}", "allowed", _sealed(kept, follows))
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute("INSERT INTO seals VALUES (?, ?)", (kept, follows))
            self._database.execute("DELETE FROM records WHERE sequence < ?", (kept,))
            head = self._insert(self.head, [said])
        self.head = head

    def close(self) -> None:
        self._database.close()


def _sealed(first: int, follows: bytes) -> str:
    return f"removed for their size; {first} is the first kept and follows {follows.hex()}"


def reading(path: Path) -> sqlite3.Connection:
    """A connection that cannot write, for one thread at a time."""
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)


def read(database: sqlite3.Connection, wanted: Wanted, limit: int, *, newest: bool = False) -> list[Record]:
    """At most `limit` records, oldest first: the first of them, or the newest."""
    conditions, values = ["sequence > ?"], [wanted.after]
    matched: dict[str, str] = {"principal": wanted.principal, "action": wanted.action}
    matched["outcome"] = "denied" if wanted.denied_only else ""
    given = {column: value for column, value in matched.items() if value}
    conditions += [f"{column} = ?" for column in given]
    order = "DESC" if newest else "ASC"
    query = f"SELECT {_COLUMNS} FROM records WHERE {' AND '.join(conditions)} ORDER BY sequence {order} LIMIT ?"  # noqa: S608 — constants
    found = [_record(row) for row in database.execute(query, (*values, *given.values(), limit))]
    return found[::-1] if newest else found


def _record(row: tuple[int, int, str, str, str, str, str, str, bytes]) -> Record:
    return Record(row[0], Entry(*row[1:8]), row[8])


def verify(database: sqlite3.Connection, known: Head) -> tuple[int, Head]:
    """Computes every hash anew, and returns how many records there are and the last of them. Blocks.

    Args:
        database: to read.
        known: a record that must be there, for somebody saw it written.

    Raises:
        DataLoss: a record was changed or is missing; names the first.
    """
    database.execute("BEGIN")  # one look at all of it, however much is written meanwhile
    try:
        return _verify(database, known)
    finally:
        database.execute("ROLLBACK")


def _verify(database: sqlite3.Connection, known: Head) -> tuple[int, Head]:
    seal = database.execute(
        "SELECT first_sequence, follows FROM seals ORDER BY first_sequence DESC LIMIT 1"
    ).fetchone()
    first, follows = seal or (1, _BEGINNING)
    head, count = Head(first - 1, follows), 0
    # Nobody has removed rows without saying so in the chain.
    told = seal is None
    for record in _all(database):
        expected = head.sequence + 1
        if record.sequence != expected:
            raise _damaged(
                min(expected, record.sequence), "is missing" if record.sequence > expected else "was added"
            )
        if digest(head.hash, expected, record.entry) != record.hash:
            raise _damaged(expected, "was changed, or the one before it")
        if known.sequence == expected and known.hash != record.hash:
            raise _damaged(expected, "is not the one that was written")
        told |= record.entry.action == _RETENTION and record.entry.detail == _sealed(first, follows)
        head, count = Head(expected, record.hash), count + 1
    if head.sequence < known.sequence:
        raise _damaged(head.sequence + 1, "is missing")
    if not told:
        raise _damaged(first - 1, "is missing, and no record says that it was removed for its size")
    return count, head


def _all(database: sqlite3.Connection) -> Iterator[Record]:
    for row in database.execute(f"SELECT {_COLUMNS} FROM records ORDER BY sequence"):  # noqa: S608 — constants
        yield _record(row)


def _damaged(sequence: int, how: str) -> DataLoss:
    return DataLoss(f"audit record {sequence} {how}", metadata={"sequence": str(sequence)})
