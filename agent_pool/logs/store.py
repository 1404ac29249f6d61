"""Where logs are, how long they are kept, and how they are read while they grow."""

import asyncio
import json
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from agent_pool.logs import lines, rotation
from agent_pool.logs.lines import Line

_SUFFIX = ".log"
_LAST_WORDS = 12
_LAST_BYTES = 8192
_FOLLOW_INTERVAL_S = 0.1
# A line longer than this is handed out in pieces.
_LONGEST_LINE_BYTES = 2**20


@dataclass(frozen=True)
class LogPolicy:
    """When a log is rotated, and what is kept. Per log unless it says otherwise."""

    rotate_bytes: int = 10_000_000
    keep_parts: int = 4
    # Of all an agent's logs.
    keep_agent_bytes: int = 200_000_000
    # Of parts, and of logs that nobody has written to since.
    keep_s: float = 30 * 86400.0


class LogStore:
    """Logs below a directory: `agents/<agent>/<worker_id>.log`."""

    def __init__(self, root: Path, policy: LogPolicy) -> None:
        self._root = root
        self._agents = root / "agents"
        self._policy = policy
        # Bytes that rotation has cut off the front of a live file, so that a reader's place stays true.
        self._cut: dict[Path, int] = {}

    def path(self, agent: str, worker_id: str) -> Path:
        return self._agents / agent / (worker_id + _SUFFIX)

    def platform_path(self, name: str) -> Path:
        return self._root / (name + _SUFFIX)

    def open(self, agent: str, worker_id: str) -> int:
        """A descriptor that appends to a worker's log, which survives its pool."""
        path = self.path(agent, worker_id)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _open(path)

    def note(self, agent: str, worker_id: str, level: str, event: str, **fields: str) -> None:
        """Writes a line of the pool's own into a worker's log."""
        time = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        line = json.dumps(
            {"event": event, **fields, "worker_id": worker_id, "agent": agent, "level": level, "time": time}
        )
        descriptor = self.open(agent, worker_id)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)

    def open_platform(self, name: str) -> int:
        """A descriptor that appends to a log of the platform's own."""
        return _open(self.platform_path(name))

    def last_words(self, agent: str, worker_id: str, since: int = 0) -> str:
        """The last lines of a log, each on its own line after a newline, "" if there are none.

        Args:
            since: of the live file's size, in bytes, before which nothing counts.
        """
        try:
            with self.path(agent, worker_id).open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(since, size - _LAST_BYTES, 0))
                text = stream.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "".join(f"\n{line}" for line in text.splitlines()[-_LAST_WORDS:])

    def size(self, agent: str, worker_id: str) -> int:
        """Of the live file, in bytes."""
        path = self.path(agent, worker_id)
        return path.stat().st_size if path.exists() else 0

    def logs_of(self, agent: str) -> list[str]:
        """Whose logs of an agent there are: worker ids, and "template"."""
        directory = self._agents / agent
        if not directory.is_dir():
            return []
        return sorted(path.name.removesuffix(_SUFFIX) for path in directory.glob(f"*{_SUFFIX}"))

    def agent_of(self, worker_id: str) -> str | None:
        """The agent of a worker that has a log, or None."""
        agent = worker_id.rpartition("-")[0]
        return agent if agent and self.path(agent, worker_id).exists() else None

    def maintain(self, now_s: float) -> None:
        """Rotates what is too large, and removes what is too old or too much. Blocks."""
        if not self._agents.is_dir():
            return
        for directory in self._agents.iterdir():
            for live in directory.glob(f"*{_SUFFIX}"):
                if live.stat().st_size > self._policy.rotate_bytes:
                    cut = rotation.rotate(live)
                    self._cut[live] = self._cut.get(live, 0) + cut
            for path in expired(_files(directory), self._policy, now_s):
                path.unlink(missing_ok=True)
            if not any(directory.iterdir()):
                directory.rmdir()

    def past(self, agent: str, names: list[str], level: str, tail: int | None) -> list[Line]:
        """The lines there are, oldest first. Blocks."""
        wanted = (
            line for line in lines.merged(self._read(agent, name) for name in names) if lines.at_least(line, level)
        )
        return list(wanted) if tail is None else list(deque(wanted, maxlen=tail))

    async def stream(
        self, agent: str, names: Callable[[], list[str]], *, level: str, tail: int | None, follow: bool
    ) -> AsyncGenerator[Line, None]:
        """The lines there are, and with `follow` those to come.

        Args:
            names: whose logs; asked again while following, because workers come and go.

        Raises:
            InvalidArgument: the level.
        """
        level = lines.check_level(level)
        # Places first, so that what is written while the past is read is neither lost nor told twice.
        places = {name: self._end(agent, name) for name in names()} if follow else {}
        readers = {name: _Reader(name, place) for name, place in places.items()}
        for line in await asyncio.to_thread(self._before, agent, names(), places, level, tail):
            yield line
        while follow:
            await asyncio.sleep(_FOLLOW_INTERVAL_S)
            for name in names():
                readers.setdefault(name, _Reader(name, 0))
            fresh = [self._fresh(agent, reader) for reader in readers.values()]
            for line in lines.merged(fresh):
                if lines.at_least(line, level):
                    yield line

    def _before(
        self, agent: str, names: list[str], places: dict[str, int], level: str, tail: int | None
    ) -> list[Line]:
        if not places:
            return self.past(agent, names, level, tail)
        logs = [self._read(agent, name, until=place) for name, place in places.items()]
        wanted = (line for line in lines.merged(logs) if lines.at_least(line, level))
        return list(wanted) if tail is None else list(deque(wanted, maxlen=tail))

    def _end(self, agent: str, name: str) -> int:
        """A place at the start of a line: the end of the last whole one, counted from the file's first byte ever."""
        path = self.path(agent, name)
        if not path.exists():
            return 0
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            start = max(0, size - _LONGEST_LINE_BYTES)
            stream.seek(start)
            whole = stream.read(size - start).rfind(b"\n") + 1
        return self._cut.get(path, 0) + start + whole

    def _read(self, agent: str, name: str, until: int | None = None) -> Iterator[Line]:
        """All kept lines of one log."""
        live = self.path(agent, name)
        cut = self._cut.get(live, 0)
        left: int | None = None if until is None else until - cut
        pending = b""
        for path in (*rotation.parts(live), live):
            if not path.exists():
                continue
            with path.open("rb") as stream:
                while piece := stream.read(2**16 if left is None or path != live else min(2**16, max(left, 0))):
                    if left is not None and path == live:
                        left -= len(piece)
                    *whole, pending = (pending + piece).split(b"\n")
                    yield from (_line(name, text) for text in whole)
        if pending and until is None:
            yield _line(name, pending)

    def _fresh(self, agent: str, reader: "_Reader") -> list[Line]:
        path = self.path(agent, reader.name)
        try:
            with path.open("rb") as stream:
                stream.seek(max(0, reader.place - self._cut.get(path, 0)))
                piece = stream.read(_LONGEST_LINE_BYTES)
        except FileNotFoundError:
            return []
        end = piece.rfind(b"\n") + 1
        if not end and len(piece) == _LONGEST_LINE_BYTES:
            end = len(piece)
        reader.place += end
        return [_line(reader.name, text) for text in piece[:end].removesuffix(b"\n").split(b"\n")] if end else []


class _Reader:
    """Where a follower stands in one log."""

    def __init__(self, name: str, place: int) -> None:
        self.name = name
        self.place = place


@dataclass(frozen=True)
class LogFile:
    """What retention looks at."""

    path: Path
    size_bytes: int
    written_s: float
    # The file that a process may hold open.
    live: bool


def _files(directory: Path) -> list[LogFile]:
    found = []
    for path in directory.iterdir():
        status = path.stat()
        found.append(LogFile(path, status.st_size, status.st_mtime, path.name.endswith(_SUFFIX)))
    return found


def expired(files: list[LogFile], policy: LogPolicy, now_s: float) -> list[Path]:
    """Which of an agent's log files go. Pure. Live files go by age only."""
    gone = {file.path for file in files if now_s - file.written_s > policy.keep_s}
    parts: dict[str, list[LogFile]] = {}
    for file in files:
        if not file.live and file.path not in gone:
            parts.setdefault(file.path.stem, []).append(file)
    for group in parts.values():
        newest_first = sorted(group, key=lambda file: file.written_s, reverse=True)
        gone.update(file.path for file in islice(newest_first, policy.keep_parts, None))
    kept = sorted((file for file in files if file.path not in gone), key=lambda file: file.written_s, reverse=True)
    total = sum(file.size_bytes for file in kept if file.live)
    for file in kept:
        if not file.live:
            total += file.size_bytes
            if total > policy.keep_agent_bytes:
                gone.add(file.path)
    return sorted(gone)


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _line(name: str, raw: bytes) -> Line:
    return lines.parse("" if name == "template" else name, raw.decode(errors="replace"))
