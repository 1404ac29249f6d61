"""`agent audit`: what it asks for, and a record as people read it."""

from agentruntime._proto.uapi.v1 import audit_pb2
from agentruntime.cli.audit import readable

from tests.agentruntime.cli.conftest import Agent


def test_a_record_is_a_line() -> None:
    record = audit_pb2.AuditRecord(
        sequence=7,
        principal="agent:a",
        action="call",
        target="b",
        outcome=audit_pb2.AUDIT_OUTCOME_DENIED,
        detail="agent.yaml does not permit it",
        worker_id="a-01",
    )
    record.time.FromMicroseconds(1_700_000_000_000_000)
    assert readable(record) == ("2023-11-14T22:13:20Z denied  agent:a (a-01)  call b: agent.yaml does not permit it")
    plain = audit_pb2.AuditRecord(principal="local", action="x", outcome=audit_pb2.AUDIT_OUTCOME_ALLOWED)
    plain.time.FromMicroseconds(1_700_000_000_000_001)
    assert readable(plain) == "2023-11-14T22:13:20.000001Z allowed local  x"


def test_what_it_does_not_know_is_said(agent: Agent) -> None:
    result = agent("audit", "verfy")
    assert result.status != 0
    assert "say verify" in result.err
