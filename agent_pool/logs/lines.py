"""A log line's level and time, and the lines of several logs in order of time."""

import heapq
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from agentruntime import errors
from agentruntime.log import LEVELS

_RANKS = {level: rank for rank, level in enumerate(LEVELS)} | {"CRITICAL": len(LEVELS)}
_SYNONYMS = {"WARN": "WARNING", "FATAL": "CRITICAL", "NOTSET": "DEBUG"}
_BARE = "INFO"


@dataclass(frozen=True)
class Line:
    """One line. `time_s` since the epoch, or None if it does not say."""

    worker_id: str
    text: str
    level: str = _BARE
    time_s: float | None = None


def parse(worker_id: str, text: str) -> Line:
    """Reads a structured line (JSON with "level" and "time"), or takes a bare one as it is."""
    if not text.startswith("{"):
        return Line(worker_id, text)
    try:
        data = json.loads(text)
    except ValueError:
        return Line(worker_id, text)
    level = str(data.get("level", _BARE)).upper()
    level = _SYNONYMS.get(level, level)
    return Line(worker_id, text, level if level in _RANKS else _BARE, _seconds(data.get("time")))


def _seconds(value: object) -> float | None:
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


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


def merged(logs: Iterable[Iterable[Line]]) -> Iterator[Line]:
    """The lines of several logs in order of time. A line without a time stays behind the one before it."""
    keyed = (_keyed(index, log) for index, log in enumerate(logs))
    return (line for _, line in heapq.merge(*keyed, key=lambda pair: pair[0]))


def _keyed(index: int, log: Iterable[Line]) -> Iterator[tuple[tuple[float, int, int], Line]]:
    latest = 0.0
    for position, line in enumerate(log):
        latest = max(latest, line.time_s or 0.0)
        yield (latest, index, position), line
