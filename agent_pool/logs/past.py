"""The lines that several logs have: since a time, of a level, the last so many. Reads no more than it must."""

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from agent_pool.logs import file, lines
from agent_pool.logs.lines import Line, Stamped

# What every line above INFO has; bare lines are INFO.
_SEVERE = re.compile(rb'"level"\s*:\s*"(?:warn|error|crit|fatal)', re.IGNORECASE)
_PREFILTERED = ("WARNING", "ERROR")
# Where a search for a time has so few bytes left, they are read.
_FEW_BYTES = 2**17


@dataclass(frozen=True)
class Part:
    """Of one log."""

    # Of the worker; "" for the template.
    name: str
    path: Path
    # Positions in the file; -1 for its end, be its last line finished or not.
    until: int
    max_bytes: int


def read(parts: Iterable[Part], *, level: str, tail: int | None, since_s: float | None) -> Iterator[Stamped]:
    """In order of time, oldest first, each with the time that it was placed by. Blocks.

    Args:
        parts: what to read of which logs.
        level: at least this; "" for all.
        tail: only the last so many of those lines; None for all.
        since_s: only what was written since, by the lines' own times; a line without one counts as written when the
            next one was that has one, and the last ones when the file was last written.
    """
    with ExitStack() as stack:
        logs = []
        for part in parts:
            try:
                descriptor = os.open(part.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            stack.callback(os.close, descriptor)
            start, end = file.kept(descriptor, part.max_bytes)
            end = end if part.until < 0 else min(end, part.until)
            if since_s is not None:
                start = _since(descriptor, start, end, since_s)
            logs.append((part.name, descriptor, start, end))
        if tail is None:
            ahead = (_forward(*log, level) for log in logs)
            yield from (each for each in lines.merged(ahead, time.time()) if lines.at_least(each[1], level))
            return
        back = (_backward(*log, level) for log in logs)
        found = (each for each in lines.merged_backward(back, time.time()) if lines.at_least(each[1], level))
        yield from reversed(list(islice(found, tail)))


def parsed(name: str, raw: bytes) -> Line:
    """A line of a file, which may begin where a hole ends."""
    return lines.parse(name, raw.lstrip(b"\0").decode(errors="replace"))


def _forward(name: str, descriptor: int, start: int, end: int, level: str) -> Iterator[Line]:
    for _, batch in file.forward(descriptor, start, end):
        yield from (parsed(name, raw) for raw in _candidates(batch, level))


def _backward(name: str, descriptor: int, start: int, end: int, level: str) -> Iterator[Line]:
    for batch in file.backward(descriptor, start, end):
        yield from (parsed(name, raw) for raw in reversed(_candidates(batch, level)))


def _candidates(batch: list[bytes], level: str) -> list[bytes]:
    return [raw for raw in batch if _SEVERE.search(raw)] if level in _PREFILTERED else batch


def _since(descriptor: int, start: int, end: int, since_s: float) -> int:
    """Behind the last line that is older than that."""
    if os.fstat(descriptor).st_mtime < since_s:
        return end
    return older_until(descriptor, start, end, since_s)


def older_until(descriptor: int, start: int, end: int, before_s: float) -> int:
    """The position behind the last line with a time before that, of those at the front of a log.

    Lines without a time that follow it are younger, for all that is known.
    """
    low, high = start, end
    while high - low > _FEW_BYTES:
        middle = (low + high) // 2
        at = file.next_line(descriptor, middle, high)
        first_s = first_time(descriptor, at, high)
        if first_s is None or first_s >= before_s:
            high = middle
        else:
            low = at
    place = low
    for behind, time_s in _times(descriptor, low, end):
        if time_s >= before_s:
            break
        place = behind
    return place


def first_time(descriptor: int, start: int, end: int) -> float | None:
    """The time of the first line that has one, if it comes soon."""
    return next((time_s for _, time_s in _times(descriptor, start, min(end, start + _FEW_BYTES))), None)


def _times(descriptor: int, start: int, end: int) -> Iterator[tuple[int, float]]:
    """Of each line that has one, with the position behind the line."""
    for behind, batch in file.forward(descriptor, start, end):
        place = behind - sum(len(raw) + 1 for raw in batch)
        for raw in batch:
            place += len(raw) + 1
            if raw.startswith(b"{") and (time_s := parsed("", raw).time_s) is not None:
                yield min(place, end), time_s
