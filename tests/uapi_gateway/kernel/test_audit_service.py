"""What an administrator reads of the audit log."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from agentruntime._proto.uapi.v1 import audit_pb2

from uapi_gateway.kernel.audit import AuditLog
from uapi_gateway.kernel.audit_service import AuditService

_NO_CONTEXT = cast(Any, None)


@pytest.fixture
async def audit(tmp_path: Path) -> AsyncIterator[AuditLog]:
    log = AuditLog(tmp_path / "audit.db")
    yield log
    await log.close()


async def _add(audit: AuditLog, *numbers: int) -> None:
    for number in numbers:
        await audit.record(
            principal="agent:a",
            action="call",
            target=f"t{number}",
            outcome="denied" if number % 2 else "allowed",
            detail="why",
            worker_id="a-01",
        )


def _list(audit: AuditLog, **wanted: Any) -> AsyncIterator[audit_pb2.ListAuditRecordsResponse]:
    return AuditService(audit).ListAuditRecords(audit_pb2.ListAuditRecordsRequest(**wanted), _NO_CONTEXT)


async def _targets(audit: AuditLog, **wanted: Any) -> list[str]:
    return [each.record.target async for each in _list(audit, **wanted)]


async def test_lists_the_past(audit: AuditLog) -> None:
    await _add(audit, *range(1, 6))
    assert await _targets(audit) == ["t1", "t2", "t3", "t4", "t5"]
    assert await _targets(audit, limit=2) == ["t4", "t5"]
    assert await _targets(audit, denied_only=True, after_sequence=1) == ["t3", "t5"]
    assert await _targets(audit, principal="local") == []
    first = (await anext(_list(audit))).record
    assert (first.principal, first.action, first.detail, first.worker_id) == ("agent:a", "call", "why", "a-01")
    assert first.outcome == audit_pb2.AUDIT_OUTCOME_DENIED
    assert len(first.hash) == 32


async def test_more_than_a_page(audit: AuditLog) -> None:
    await asyncio.gather(
        *(audit.record(principal="p", action="x", target=str(n), outcome="allowed") for n in range(1200))
    )
    assert len(await _targets(audit)) == 1200


async def test_follows_what_is_to_come(audit: AuditLog) -> None:
    await _add(audit, 1, 2, 3)
    following = _list(audit, follow=True, limit=1)
    assert (await anext(following)).record.target == "t3"
    coming = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    assert not coming.done()
    await _add(audit, 4, 5)
    assert [(await coming).record.target, (await anext(following)).record.target] == ["t4", "t5"]


async def test_follows_only_what_matches(audit: AuditLog) -> None:
    await _add(audit, 2)
    coming = asyncio.ensure_future(anext(_list(audit, follow=True, denied_only=True)))
    await _add(audit, 4, 6, 7)
    assert (await coming).record.target == "t7"


async def test_verifies(audit: AuditLog) -> None:
    await _add(audit, 1, 2, 3)
    answer = await AuditService(audit).VerifyAudit(audit_pb2.VerifyAuditRequest(), _NO_CONTEXT)
    assert (answer.records, answer.last_hash) == (3, audit.head.hash)
