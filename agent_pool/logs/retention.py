"""What of an agent's logs is kept: by age, by size."""

import os
from dataclasses import dataclass
from pathlib import Path

from agent_pool.logs import file, past

# A log above the second part of its bound is brought to the first, so that it is not trimmed for each line. The rest
# of the bound is for what is written until it is looked at again.
_TRIMMED_TO = 0.75
_TRIMMED_AT = 0.8


@dataclass(frozen=True)
class LogPolicy:
    """How an agent's logs are kept; the proto's Logging."""

    # "fluentd://host:port", or "none".
    aggregator: str = "none"
    retention_s: float = 7 * 86400.0
    # Of each worker.
    max_bytes: int = 100 * 10**6
    # Lines that are no objects are handed out as such.
    as_objects: bool = False
    # Whose logs a process may hold open.
    living: frozenset[str] = frozenset()


def shorten(path: Path, max_bytes: int) -> tuple[bool, int]:
    """Gives back what of a log is too much: whether there was any, and at which size of the file to look again.

    Raises:
        FileNotFoundError: there is no such log.
    """
    with path.open("r+b") as stream:
        descriptor = stream.fileno()
        end = os.fstat(descriptor).st_size
        spare = int(_TRIMMED_AT * max_bytes) - file.held_bytes(descriptor)
        if spare > 0:
            return False, end + spare
        file.trim(descriptor, file.next_line(descriptor, max(0, end - int(_TRIMMED_TO * max_bytes)), end))
        return True, end + int((_TRIMMED_AT - _TRIMMED_TO) * max_bytes)


def drop_older(path: Path, max_bytes: int, oldest_s: float) -> None:
    """Gives back a log's lines from before a time.

    Lines without a time go with the next one that has one, or when nothing was written for so long.
    """
    with path.open("r+b") as stream:
        descriptor = stream.fileno()
        start, end = file.kept(descriptor, max_bytes)
        if os.fstat(descriptor).st_mtime < oldest_s:
            file.trim(descriptor, end)
            return
        # Asked about each log all the time: a look at its first lines must do, mostly.
        first_s = past.first_time(descriptor, start, end)
        if first_s is not None and first_s < oldest_s:
            file.trim(descriptor, past.older_until(descriptor, start, end, oldest_s))
