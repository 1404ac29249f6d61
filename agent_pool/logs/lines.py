"""A log line: its level and time, what of it is an object, and the lines of several logs in order of time."""

import heapq
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from agentruntime import errors
from agentruntime.log import LEVELS

_RANKS = {level: rank for rank, level in enumerate(LEVELS)} | {"CRITICAL": len(LEVELS)}
_SYNONYMS = {"WARN": "WARNING", "FATAL": "CRITICAL", "NOTSET": "DEBUG"}
_BARE = "INFO"
# So many lines without a time wait for one that has it.
_MOST_BARE = 1000

Stamped = tuple[float, "Line"]


@dataclass(frozen=True, slots=True)
class Line:
    """One line. `time_s` since the epoch, or None if it does not say."""

    worker_id: str
    text: str
    level: str = _BARE
    time_s: float | None = None


def parse(worker_id: str, text: str) -> Line:
    """Reads a structured line (JSON with "level" and "time"), or takes a bare one as it is."""
    data = entry(text)
    if data is None:
        return Line(worker_id, text)
    level = str(data.get("level", _BARE)).upper()
    level = _SYNONYMS.get(level, level)
    return Line(worker_id, text, level if level in _RANKS else _BARE, _seconds(data.get("time")))


def entry(text: str) -> dict[str, Any] | None:
    """The object that a structured line is; None for a bare one."""
    if not text.startswith("{"):
        return None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def completed(line: Line, agent: str, time_s: float) -> dict[str, Any]:
    """What a line says as an object that has time, level, event, worker_id and agent.

    Args:
        line: any.
        agent: whose worker wrote it.
        time_s: of a line that says none.
    """
    data = entry(line.text)
    if data is None:
        data = {"event": line.text}
    told = {key: data[key] for key in ("time", "level", "worker_id", "agent") if isinstance(data.get(key), str)}
    time = datetime.fromtimestamp(time_s, UTC).isoformat().replace("+00:00", "Z")
    filled = {"time": time, "level": line.level.lower(), "worker_id": line.worker_id, "agent": agent, **told}
    return {"event": str(data.get("message", data.get("msg", ""))), **data, **filled}


def _seconds(value: object) -> float | None:
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def check_level(level: str) -> str:
    """The level in capitals; "" for all.

    Raises:
        InvalidArgument: it is none.
    """
    level = _SYNONYMS.get(level.upper(), level.upper())
    if level and level not in LEVELS:
        raise errors.InvalidArgument(f"'{level}' is not a log level; use {', '.join(LEVELS)}")
    return level


def at_least(line: Line, level: str) -> bool:
    """Whether a line is as severe as `level`, "" for any."""
    return not level or _RANKS[line.level] >= _RANKS[level]


def merged(logs: Iterable[Iterable[Line]], written_s: float) -> Iterator[Stamped]:
    """The lines of several logs in order of time, each with the time that it was placed by.

    Each log's lines stay in their order. A line without a time stays behind the one before it; those at the start of
    a log go with the first that has one.

    Args:
        logs: the lines of each.
        written_s: taken for the time of all lines of a log of which none has one.
    """
    return heapq.merge(*(_stamped(log, written_s) for log in logs), key=lambda pair: pair[0])


def merged_backward(logs: Iterable[Iterable[Line]], written_s: float) -> Iterator[Stamped]:
    """The same for logs that are read from their ends, the latest line first."""
    stamped = [_stamped_backward(log, written_s) for log in logs]
    return heapq.merge(*reversed(stamped), key=lambda pair: pair[0], reverse=True)


def _stamped(log: Iterable[Line], written_s: float) -> Iterator[Stamped]:
    latest: float | None = None
    waiting: list[Line] = []
    for line in log:
        if line.time_s is not None:
            latest = line.time_s if latest is None else max(latest, line.time_s)
        elif latest is None:
            waiting.append(line)
            if len(waiting) == _MOST_BARE:
                latest = 0.0
                yield from ((latest, each) for each in waiting)
                waiting = []
            continue
        yield from ((latest, each) for each in waiting)
        waiting = []
        yield latest, line
    yield from ((written_s, each) for each in waiting)


def _stamped_backward(log: Iterable[Line], written_s: float) -> Iterator[Stamped]:
    earliest = written_s
    # Until the line before them says when they were written.
    waiting: list[Line] = []
    for line in log:
        if line.time_s is None and len(waiting) < _MOST_BARE:
            waiting.append(line)
            continue
        if line.time_s is not None:
            earliest = min(earliest, line.time_s)
        yield from ((earliest, each) for each in waiting)
        waiting = []
        yield earliest, line
    yield from ((earliest, each) for each in waiting)
