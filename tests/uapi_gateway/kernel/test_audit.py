"""Records are on disk when they are acknowledged, share writes, and are bounded where a caller is refused."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from agentruntime.errors import DataLoss, DiskFull

from uapi_gateway.kernel import floods
from uapi_gateway.kernel.audit import AuditLog
from uapi_gateway.kernel.audit_store import AuditStore, Wanted


class _Clock:
    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
async def audit(tmp_path: Path, clock: _Clock) -> AsyncIterator[AuditLog]:
    log = AuditLog(tmp_path / "audit.db", now=clock)
    yield log
    await log.close()


async def _denied(audit: AuditLog, principal: str = "key:ci") -> None:
    await audit.record(principal=principal, action="call", target="b", outcome="denied", detail="why")


def _rows(path: Path) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return list(database.execute("SELECT principal, action, target, outcome, detail, worker_id FROM records"))


async def test_what_is_acknowledged_is_on_disk(audit: AuditLog, tmp_path: Path) -> None:
    await audit.record(
        principal="local", action="AgentPool/StopAgent", target="a", outcome="failed", detail="NOT_FOUND"
    )
    assert _rows(tmp_path / "audit.db") == [("local", "AgentPool/StopAgent", "a", "failed", "NOT_FOUND", "")]
    assert (tmp_path / "audit.db").stat().st_mode & 0o777 == 0o600


async def test_records_that_come_at_once_share_a_write(audit: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    append = AuditStore.append

    def counted(self: AuditStore, entries: list[object]) -> None:
        writes.append(len(entries))
        append(self, entries)  # type: ignore[arg-type]  # whatever it is given

    monkeypatch.setattr(AuditStore, "append", counted)
    await asyncio.gather(
        *(audit.record(principal="local", action="x", target=str(number), outcome="allowed") for number in range(500))
    )
    assert sum(writes) == 500
    assert len(writes) <= 3
    assert (await audit.verify())[0] == 500


async def test_a_flood_of_denials_is_counted(audit: AuditLog, clock: _Clock) -> None:
    for _ in range(floods.EACH + 512):
        await _denied(audit)
    await _denied(audit, "agent:a")
    assert audit.head.sequence == floods.EACH + 1
    clock.now_s += 60
    await _denied(audit)
    await audit.beyond(floods.EACH + 2)
    found = await audit.read(Wanted(principal="key:ci"), newest=2)
    assert [each.entry.detail.split(",")[0] for each in found] == ["and 512 more", "why"]
    assert found[0].entry.outcome == "denied"


async def test_what_was_counted_is_written_at_the_end(tmp_path: Path, clock: _Clock) -> None:
    audit = AuditLog(tmp_path / "audit.db", now=clock)
    for _ in range(floods.EACH + 2):
        await _denied(audit)
    await audit.close()
    assert _rows(tmp_path / "audit.db")[-1][4].startswith("and 2 more")


async def test_texts_are_bounded_and_can_be_stored(audit: AuditLog) -> None:
    await audit.record(principal="p", action="call", target="\ud800" + "x" * 5000, outcome="denied")
    (record,) = await audit.read(Wanted())
    assert record.entry.target.startswith("?xxx")
    assert len(record.entry.target) == 1024
    await audit.verify()


async def test_a_disk_without_room_refuses_what_is_to_be_recorded(audit: AuditLog, tmp_path: Path) -> None:
    await audit.record(principal="local", action="x", target="", outcome="allowed")
    database = audit._store._database
    # The same error as of a disk that is full: SQLITE_FULL, https://www.sqlite.org/rescode.html#full
    await asyncio.wrap_future(audit._thread.submit(database.execute, "PRAGMA max_page_count = 1"))
    with pytest.raises(DiskFull, match=f"the disk that holds {tmp_path}"):
        await asyncio.gather(
            *(audit.record(principal="local", action="x" * 1000, target="", outcome="allowed") for _ in range(1000))
        )
    await asyncio.wrap_future(audit._thread.submit(database.execute, "PRAGMA max_page_count = 100000"))
    await audit.record(principal="local", action="after", target="", outcome="allowed")
    count, head = await audit.verify()
    assert head == audit.head
    assert count == head.sequence


async def test_what_cannot_be_written_is_refused(audit: AuditLog) -> None:
    await asyncio.wrap_future(audit._thread.submit(audit._store._database.execute, "DROP TABLE records"))
    with pytest.raises(DataLoss, match="cannot be written"):
        await audit.record(principal="local", action="x", target="", outcome="allowed")


async def test_an_unforeseen_failure_is_told_and_the_next_record_is_written(
    audit: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OverflowError("Python int too large to convert to SQLite INTEGER")

    with monkeypatch.context() as broken:
        broken.setattr(AuditStore, "append", fails)
        with pytest.raises(DataLoss, match="cannot be written"):
            await audit.record(principal="local", action="x", target="", outcome="allowed")
    await audit.record(principal="local", action="x", target="", outcome="allowed")
    assert audit.head.sequence == 1


async def test_what_is_on_disk_is_acknowledged_though_the_oldest_cannot_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(AuditStore, "_shorten", fails)
    audit = AuditLog(tmp_path / "audit.db", longest_bytes=1)
    await audit.record(principal="local", action="x", target="", outcome="allowed")
    assert audit.head.sequence == 1
    await audit.close()


async def test_whoever_hangs_up_is_recorded(audit: AuditLog) -> None:
    task = asyncio.create_task(audit.record(principal="local", action="x", target="", outcome="allowed"))
    await asyncio.sleep(0)
    task.cancel()
    await audit.beyond(0)
    assert audit.head.sequence == 1
