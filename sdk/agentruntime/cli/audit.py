"""`agent audit`."""

import math
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict

from agentruntime._proto.uapi.v1 import audit_pb2, audit_pb2_grpc
from agentruntime.cli import output, platform
from agentruntime.client.sync import Client

_VERIFY = "verify"
_OUTCOMES = {
    audit_pb2.AUDIT_OUTCOME_ALLOWED: "allowed",
    audit_pb2.AUDIT_OUTCOME_DENIED: "denied",
    audit_pb2.AUDIT_OUTCOME_FAILED: "failed",
}


def command(
    what: Annotated[str | None, typer.Argument(help=f"`{_VERIFY}` computes the chain of hashes anew.")] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with records to come, until Ctrl-C.")] = False,
    denied: Annotated[bool, typer.Option("--denied", help="Only what was refused.")] = False,
    principal: Annotated[str, typer.Option(help="Only what this one did: local, key:ci, agent:my-agent.")] = "",
    action: Annotated[str, typer.Option(help="Only this: AgentPool/RunAgent, call, egress …")] = "",
    tail: Annotated[int | None, typer.Option(min=1, help="Only the last so many of the past.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Short for --output json.")] = False,
    format_: output.Output = None,
) -> None:
    """Show what was done on the platform and by whom, and what was refused.

    `agent audit verify` says whether a record was changed or removed since it was written.
    With --json, one JSON object a line.
    """
    if what not in (None, _VERIFY):
        raise typer.BadParameter(f"'{what}' is not known; leave it out, or say {_VERIFY}", param_hint="WHAT")
    as_json = json_ or output.wants_json(format_)
    with platform.connect() as client:
        if what == _VERIFY:
            _verify(client, as_json=as_json)
            return
        request = audit_pb2.ListAuditRecordsRequest(
            principal=principal, action=action, denied_only=denied, follow=follow, limit=tail or 0
        )
        for response in _stub(client).ListAuditRecords(request, timeout=math.inf):
            if as_json:
                output.print_json_line(_data(response.record))
            else:
                print(readable(response.record), flush=follow)


def _stub(client: Client) -> audit_pb2_grpc.AuditServiceStub:
    return client.stub(audit_pb2_grpc.AuditServiceStub, agent="")


def _verify(client: Client, *, as_json: bool) -> None:
    # However long the log is.
    answer = _stub(client).VerifyAudit(audit_pb2.VerifyAuditRequest(), timeout=math.inf)
    if as_json:
        output.print_json({"records": answer.records, "last_hash": answer.last_hash.hex()})
    else:
        print(f"{answer.records} records, none changed or missing; the last has the hash {answer.last_hash.hex()}")


def _data(record: audit_pb2.AuditRecord) -> dict[str, Any]:
    """As its message, with the words of the outcome and the hash as `verify` shows it."""
    data = output.as_data(record)
    return {**data, "outcome": _OUTCOMES.get(record.outcome, ""), "hash": record.hash.hex()}


def readable(record: audit_pb2.AuditRecord) -> str:
    """A record in a line for people."""
    time = MessageToDict(audit_pb2.AuditRecord(time=record.time))["time"] if record.HasField("time") else "-"
    who = record.principal + (f" ({record.worker_id})" if record.worker_id else "")
    line = f"{time} {_OUTCOMES.get(record.outcome, '?'):<7} {who}  {record.action} {record.target}".rstrip()
    return line + (f": {record.detail}" if record.detail else "")
