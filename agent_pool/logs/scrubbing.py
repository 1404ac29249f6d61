"""Secrets that got into a log file, written over: what a worker printed past Python, by a child process or a library.

Python's own lines never get there. A log is appended to by processes that the pool does not stand between, so these
are on the disk for a moment; whoever reads logs by the pool does not see them even then.
"""

import os
from pathlib import Path

from agent_pool.logs import file
from agent_pool.logs.store import LogStore

# Read at a time of each log.
_PIECE_BYTES = 2**20


class Scrubber:
    """Of one store; remembers how far it has looked."""

    def __init__(self, logs: LogStore) -> None:
        self._logs = logs
        # By log: the file's inode and the position.
        self._places: dict[Path, tuple[int, int]] = {}

    def look(self) -> bool:
        """Looks at what was written since the last time; whether there is more to be looked at. Blocks."""
        more = False
        for path in self._logs.watched():
            redactor = self._logs.redactor(path.parent.name)
            if not redactor:
                continue
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                self._places.pop(path, None)
                continue
            try:
                status = os.fstat(descriptor)
                inode, place = self._places.get(path, (status.st_ino, 0))
                if inode != status.st_ino or place > status.st_size:
                    place = 0
                if place < status.st_size:
                    place = max(place, file.first_data(descriptor, place))
                    # A value may have been written in two pieces.
                    begin = max(0, place - redactor.longest_bytes)
                    data = os.pread(descriptor, _PIECE_BYTES, begin)
                    for at, masked in redactor.masks(data):
                        os.pwrite(descriptor, masked, begin + at)
                    place = begin + len(data)
                    more |= place < status.st_size
                self._places[path] = status.st_ino, place
            finally:
                os.close(descriptor)
        return more
