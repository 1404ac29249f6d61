"""The chain of records: what changes it is found, and what is removed for its size is said."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from agentruntime.errors import DataLoss

from uapi_gateway.kernel import audit_store
from uapi_gateway.kernel.audit_store import AuditStore, Entry, Head, Wanted


def _entry(number: int, outcome: str = "allowed", principal: str = "local") -> Entry:
    return Entry(1_000_000 + number, principal, "AgentPool/RunAgent", f"a{number}", outcome, "", "")


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(audit_store.reading(path)) as database:
        yield database


def _verify(path: Path, known: Head | None = None) -> tuple[int, Head]:
    with _reading(path) as database:
        return audit_store.verify(database, known or Head())


def _filled(path: Path, count: int = 5, longest_bytes: int = 2**30) -> Head:
    store = AuditStore(path, longest_bytes)
    store.append([_entry(number) for number in range(count)])
    store.close()
    return store.head


def test_each_record_is_bound_to_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    head = _filled(path)
    assert _verify(path, head) == (5, head)
    again = AuditStore(path, 2**30)
    assert again.head == head
    again.append([_entry(5)])
    assert _verify(path, again.head) == (6, again.head)
    again.close()


@pytest.mark.parametrize(
    "statement", ["UPDATE records SET target = 'x'", "DELETE FROM records", "INSERT INTO seals VALUES (3, x'00')"]
)
def test_triggers_keep_mistakes_from_changing_it(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "audit.db"
    head = _filled(path)
    with closing(sqlite3.connect(path)) as database:
        if statement.startswith("INSERT"):
            database.execute(statement)
            database.commit()
            statement = "DELETE FROM seals"
        with pytest.raises(sqlite3.IntegrityError, match="only ever added to"):
            database.execute(statement)
    if "seals" not in statement:
        assert _verify(path, head)[0] == 5


@pytest.mark.parametrize(
    ("tampering", "found"),
    [
        ("UPDATE records SET outcome = 'allowed', target = 'other' WHERE sequence = 3", "audit record 3 was changed"),
        ("DELETE FROM records WHERE sequence = 2", "audit record 2 is missing"),
        ("DELETE FROM records WHERE sequence = 5", "audit record 5 is missing"),
        ("DELETE FROM records WHERE sequence < 3", "audit record 1 is missing"),
        ("INSERT INTO seals SELECT 3, hash FROM records WHERE sequence = 2; DELETE FROM records WHERE sequence < 3",
         "audit record 2 is missing, and no record says"),
        ("INSERT INTO records SELECT 0, time_micros, principal, action, target, outcome, detail, worker_id, hash"
         " FROM records WHERE sequence = 1", "audit record 0 was added"),
    ],
)  # fmt: skip
def test_what_was_tampered_with_is_named(tmp_path: Path, tampering: str, found: str) -> None:
    path = tmp_path / "audit.db"
    head = _filled(path)
    with closing(sqlite3.connect(path)) as database:
        triggers = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]
        database.executescript(";".join([*(f"DROP TRIGGER {name}" for name in triggers), tampering]))
    with pytest.raises(DataLoss, match=found):
        _verify(path, head)


def test_a_chain_made_anew_is_not_the_one_that_was_written(tmp_path: Path) -> None:
    head = _filled(tmp_path / "audit.db")
    store = AuditStore(tmp_path / "other.db", 2**30)
    store.append([_entry(number, principal="nobody") for number in range(5)])
    store.close()
    assert _verify(tmp_path / "other.db")[0] == 5
    with pytest.raises(DataLoss, match="audit record 5 is not the one that was written"):
        _verify(tmp_path / "other.db", head)


def test_the_oldest_go_when_the_file_has_its_size(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    longest_bytes = 200_000
    store = AuditStore(path, longest_bytes)
    for batch in range(40):
        store.append([_entry(100 * batch + number) for number in range(100)])
    assert store._size_bytes() <= longest_bytes
    store.close()
    with _reading(path) as database:
        kept = audit_store.read(database, Wanted(), 10_000)
        removals = audit_store.read(database, Wanted(action="audit/retention"), 100)
    assert removals
    assert kept[0].sequence == int(removals[-1].entry.detail.split("; ")[1].split()[0])
    assert _verify(path, store.head) == (len(kept), store.head)


def test_reads_what_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    store = AuditStore(path, 2**30)
    store.append([_entry(1), _entry(2, "denied", "key:ci"), _entry(3, "failed", "key:ci"), _entry(4, "denied")])
    store.close()
    with _reading(path) as database:

        def found(wanted: Wanted, limit: int = 10, *, newest: bool = False) -> list[int]:
            return [each.sequence for each in audit_store.read(database, wanted, limit, newest=newest)]

        assert found(Wanted()) == [1, 2, 3, 4]
        assert found(Wanted(after=2)) == [3, 4]
        assert found(Wanted(denied_only=True)) == [2, 4]
        assert found(Wanted(principal="key:ci")) == [2, 3]
        assert found(Wanted(principal="key:ci", denied_only=True)) == [2]
        assert found(Wanted(action="call")) == []
        assert found(Wanted(), 2) == [1, 2]
        assert found(Wanted(), 2, newest=True) == [3, 4]
