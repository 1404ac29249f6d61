"""`agent logs`."""

import json
import math
import textwrap
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli import output, platform
from agentruntime.units import parse_duration

# Of a structured line: what stands in a place of its own, and what is the same in every line.
_PLACED = frozenset(("time", "level", "event", "exception"))
_REPEATED = frozenset(("worker_id", "agent", "revision", "logger"))


def command(
    name: Annotated[str, typer.Argument(help="An agent, or one of its workers.")],
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with lines to come, until Ctrl-C.")] = False,
    level: Annotated[str | None, typer.Option(help="At least DEBUG, INFO, WARNING or ERROR.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only what was written since: 10m ago, or a time (2026-01-31T12:00:00Z).")
    ] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="Only the last so many lines of the past.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Short for --output json.")] = False,
    format_: output.Output = None,
) -> None:
    """Show what an agent's workers wrote, in order of time.

    With --json, one JSON object a line.
    """
    request = pool_pb2.StreamLogsRequest(
        name=name, follow=follow, level=(level or "").upper(), tail=tail, since=_moment(since)
    )
    as_json = json_ or output.wants_json(format_)
    with platform.connect() as client:
        # However much there is: who has seen enough types Ctrl-C.
        for entry in client.pool.StreamLogs(request, timeout=math.inf):
            if as_json:
                output.print_json_line(output.as_data(entry))
            else:
                # A worker's name says where a line is from; whoever asked for one worker knows.
                print(readable(entry.line, "" if entry.worker_id == name else entry.worker_id), flush=follow)


def _moment(since: str | None) -> Timestamp | None:
    """What `--since` means.

    Raises:
        BadParameter: it is neither a duration nor a time.
    """
    if since is None:
        return None
    now = datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(since) if "-" in since else now - timedelta(seconds=parse_duration(since))
        stamp = Timestamp()
        stamp.FromDatetime(moment if moment.tzinfo else moment.astimezone())
    except (ValueError, OverflowError, errors.InvalidArgument):
        raise typer.BadParameter(
            f"'{since}' is no time; write a duration (10m) or a date with its time (2026-01-31T12:00:00Z)",
            param_hint="--since",
        ) from None
    return stamp


def readable(line: str, worker_id: str) -> str:
    """A line for people: a structured one in words with its traceback below, any other as it is.

    Args:
        worker_id: shown before the line's words; empty where it goes without saying.
    """
    worker = f"{worker_id}  " if worker_id else ""
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not (isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("time", "level", "event"))):
        return worker + line
    fields = " ".join(f"{key}={_value(entry[key])}" for key in entry if key not in _PLACED | _REPEATED)
    text = f"{entry['time']} {entry['level'].upper():<7} {worker}{entry['event']}"
    if fields:
        text += f"  {fields}"
    if exception := entry.get("exception"):
        text += "\n" + textwrap.indent(str(exception), "    ")
    return text


def _value(value: Any) -> str:
    """A word as it is, anything else as JSON, so that it is seen where it ends."""
    if isinstance(value, str) and value.isprintable() and value and not set(value) & set(" \"'="):
        return value
    return json.dumps(value, ensure_ascii=False)
