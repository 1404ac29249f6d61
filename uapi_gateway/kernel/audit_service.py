"""AuditService: the audit log, for who administers."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from agentruntime._proto.uapi.v1 import audit_pb2, audit_pb2_grpc
from grpc import aio

from uapi_gateway.kernel.audit import AuditLog
from uapi_gateway.kernel.audit_store import Record, Wanted

_Context = aio.ServicerContext[Any, Any]
_OUTCOMES = {
    "allowed": audit_pb2.AUDIT_OUTCOME_ALLOWED,
    "denied": audit_pb2.AUDIT_OUTCOME_DENIED,
    "failed": audit_pb2.AUDIT_OUTCOME_FAILED,
}


class AuditService(audit_pb2_grpc.AuditServiceServicer):
    """Reads only; records are made by what they are about."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit

    async def ListAuditRecords(
        self, request: audit_pb2.ListAuditRecordsRequest, _context: _Context
    ) -> AsyncIterator[audit_pb2.ListAuditRecordsResponse]:
        wanted = Wanted(request.after_sequence, request.principal, request.action, request.denied_only)
        first = True
        while True:
            # What comes while this is read is found by the next look.
            head = self._audit.head.sequence
            found = await self._audit.read(wanted, newest=request.limit if first else 0)
            for record in found:
                yield audit_pb2.ListAuditRecordsResponse(record=_message(record))
            if found:
                wanted = replace(wanted, after=found[-1].sequence)
            if not request.follow and (request.limit or not found):
                return
            first = False
            if not found:
                wanted = replace(wanted, after=max(wanted.after, head))
                await self._audit.beyond(wanted.after)

    async def VerifyAudit(
        self, _request: audit_pb2.VerifyAuditRequest, _context: _Context
    ) -> audit_pb2.VerifyAuditResponse:
        records, last = await self._audit.verify()
        return audit_pb2.VerifyAuditResponse(records=records, last_hash=last.hash)


def _message(record: Record) -> audit_pb2.AuditRecord:
    entry = record.entry
    message = audit_pb2.AuditRecord(
        sequence=record.sequence,
        principal=entry.principal,
        action=entry.action,
        target=entry.target,
        outcome=_OUTCOMES[entry.outcome],
        detail=entry.detail,
        worker_id=entry.worker_id,
        hash=record.hash,
    )
    message.time.FromMicroseconds(entry.time_micros)
    return message
