"""What a worker prints: line by line into its log, and never at the expense of the call that prints.

With the log format `json`, each line becomes an object on its way, below everything that Python writes to stdout and
stderr; also what a handler writes that was made before the fork. What is written past Python, to the descriptors
themselves (by a child process, by a library in C), is in the log as it was written; the pool wraps such lines when it
reads or sends them.

Of a worker that has secrets, no line that holds one gets to its log: lines are looked at as a whole, so what has no
newline yet is there once it has one.
"""

import contextlib
import errno
import io
import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

from agentruntime.redaction import Redactor

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NEEDED = ("time", "level", "event", "worker_id", "agent")
# A line longer than this is kept in pieces.
_LONGEST_LINE_BYTES = 2**18
# Of a traceback.
_MOST_LINES = 2000
_GROUP_END = "    +------------------------------------"
_TRACEBACK = ("Traceback (most recent call last):", "+ Exception Group Traceback (most recent call last):")
# Between the tracebacks of a chain of exceptions; see the traceback module.
_CHAINS = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)


class Wrapping:
    """Makes objects of the lines of one stream; a traceback becomes one, at the level error."""

    def __init__(self, fields: dict[str, str]) -> None:
        self._fields = fields
        self._partial = b""
        self._traceback: list[str] = []

    def feed(self, data: bytes) -> bytes:
        """The objects, a line each, that what was written now completes."""
        *whole, self._partial = (self._partial + data).split(b"\n")
        while len(self._partial) > _LONGEST_LINE_BYTES:
            whole.append(self._partial[:_LONGEST_LINE_BYTES])
            self._partial = self._partial[_LONGEST_LINE_BYTES:]
        return b"".join(self._line(line) for line in whole)

    def finish(self) -> bytes:
        """The rest, at the end of the process."""
        rest, self._partial = self._partial, b""
        return (self._line(rest) if rest else b"") + self._told()

    def _line(self, raw: bytes) -> bytes:
        text = raw.decode(errors="backslashreplace").rstrip("\r")
        if not self._traceback:
            if text.strip() in _TRACEBACK or text in _CHAINS:
                self._traceback.append(text)
                return b""
            return self._object(text) if text.strip() else b""
        if text.startswith("{"):
            return self._object(text)  # of another thread
        self._traceback.append(text)
        goes_on = not text or text[0] in " \t" or text in _TRACEBACK
        return b"" if goes_on and text != _GROUP_END and len(self._traceback) < _MOST_LINES else self._told()

    def _told(self) -> bytes:
        if not self._traceback:
            return b""
        last = next((line for line in reversed(self._traceback) if line.strip(" |+-")), "")
        entry = {"event": last.strip(" |"), "exception": "\n".join(self._traceback), "level": "error"}
        self._traceback = []
        return self._encoded(entry)

    def _object(self, text: str) -> bytes:
        if text.startswith("{"):
            try:
                data = json.loads(text)
            except (ValueError, RecursionError):
                data = None
            if isinstance(data, dict):
                if all(isinstance(data.get(key), str) for key in _NEEDED):
                    return text.encode(errors="replace") + b"\n"
                event = next((data[key] for key in ("event", "message", "msg") if isinstance(data.get(key), str)), "")
                return self._encoded({**data, "event": event, "level": str(data.get("level", "info"))})
        return self._encoded({"event": text, "level": "info"})

    def _encoded(self, entry: Mapping[str, object]) -> bytes:
        time = entry.get("time")
        if not isinstance(time, str):
            time = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        return json.dumps({**entry, **self._fields, "time": time}).encode() + b"\n"


class Redacting:
    """Takes secrets out of the lines of one stream."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._partial = b""

    def feed(self, data: bytes) -> bytes:
        """The lines that what was written now completes."""
        whole, newline, rest = data.rpartition(b"\n")
        if newline:
            whole, self._partial = self._partial + whole + newline, rest
        else:
            self._partial += rest
        if len(self._partial) > _LONGEST_LINE_BYTES:
            whole, self._partial = whole + self._partial, b""
        return self._redactor.redact(whole)

    def finish(self) -> bytes:
        """The rest, at the end of the process."""
        rest, self._partial = self._partial, b""
        return self._redactor.redact(rest)


class _Log(io.FileIO):
    """Loses what a full disk has no room for."""

    wrapping: Wrapping | None = None
    redacting: Redacting | None = None
    # The disk filled up within a line.
    _torn = False

    def write(self, data: "ReadableBuffer", /) -> int:
        if self.wrapping is None and self.redacting is None:
            return self._put(data) or memoryview(data).nbytes
        self._put_all(self._told(self.redacting.feed(bytes(data)) if self.redacting else bytes(data)))
        return memoryview(data).nbytes

    def finish(self) -> None:
        """Writes what has no newline yet."""
        rest = self._told(self.redacting.finish()) if self.redacting else b""
        self._put_all(rest + (self.wrapping.finish() if self.wrapping else b""))

    def _told(self, data: bytes) -> bytes:
        return self.wrapping.feed(data) if self.wrapping else data

    def _put_all(self, lines: bytes) -> None:
        if lines and self._torn:
            lines = b"\n" + lines
        # In one call, so that no other stream's line comes between.
        if lines and (written := self._put(lines)):
            self._torn = written < len(lines)

    def _put(self, data: "ReadableBuffer") -> int:
        """How many bytes there was room for, which may be none."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            return 0


# Every stream of this process that goes to a log: handlers may hold on to one from before a fork.
_logs: list[_Log] = []


def lines(descriptor: int) -> TextIO:
    """A text stream to a log; the descriptor stays its caller's.

    A killed process takes no finished line with it.
    """
    log = _Log(descriptor, "wb", closefd=False)
    _logs.append(log)
    return io.TextIOWrapper(io.BufferedWriter(log), "utf-8", errors="backslashreplace", line_buffering=True)


def wrap(**fields: str) -> None:
    """From now on, whatever this process prints is kept as JSON objects with these fields in each."""
    for log in _logs:
        log.wrapping = Wrapping(fields)


def redact(redactor: Redactor) -> None:
    """From now on, nothing that it knows is in what this process prints."""
    for log in _logs:
        log.redacting = Redacting(redactor)


def finish() -> None:
    """Writes what was printed without a newline; at the end of the process."""
    with contextlib.suppress(OSError, ValueError):  # the agent may have closed them, or put others in their place
        sys.stdout.flush()
        sys.stderr.flush()
    for log in _logs:
        if not log.closed:
            log.finish()


def _forget() -> None:
    """What its parent has begun to print is not a forked process's to finish."""
    for log in _logs:
        for each in (log.redacting, log.wrapping):
            if each is not None:
                each.finish()


os.register_at_fork(after_in_child=_forget)
