"""Where logs are, how long they are kept, and how they are read while they grow."""

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from agentruntime import log
from agentruntime.redaction import Redactor

from agent_pool.logs import file, lines, past, retention
from agent_pool.logs.lines import Line, Stamped
from agent_pool.logs.past import Part
from agent_pool.logs.retention import LogPolicy

_SUFFIX = ".log"
_LAST_WORDS = 12
_LAST_BYTES = 16 * 1024
# What Python's faulthandler begins with, of a process that a signal such as SIGSEGV ends.
_FATAL = "Fatal Python error: "
_FOLLOW_INTERVAL_S = 0.1
# Lines handed on at a time.
_BATCH = 500
_TEMPLATE = "template"
_log = log.get("agent_pool.logs")


class LogStore:
    """Logs below a directory: `agents/<agent>/<worker_id>.log`.

    `policy` says how an agent's are kept, `redactor` what of theirs nobody is to read; both are asked each time.
    """

    def __init__(
        self,
        root: Path,
        policy: Callable[[str], LogPolicy] = lambda _: LogPolicy(),
        redactor: Callable[[str], Redactor] = lambda _: Redactor({}),
    ) -> None:
        self._root = root
        self.redactor = redactor
        self._agents = root / "agents"
        self.policy = policy
        # The size of each log at which it may be too long.
        self._look_at: dict[Path, int] = {}

    def path(self, agent: str, worker_id: str) -> Path:
        return self._agents / agent / (worker_id + _SUFFIX)

    def platform_path(self, name: str) -> Path:
        return self._root / (name + _SUFFIX)

    def open(self, agent: str, worker_id: str) -> int:
        """A descriptor that appends to a worker's log, which survives its pool."""
        path = self.path(agent, worker_id)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = _open(path)
        self._look_at.setdefault(path, 0)
        return descriptor

    def note(self, agent: str, worker_id: str, level: str, event: str, **fields: str) -> None:
        """Writes a line of the pool's own into a worker's log."""
        moment = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        line = json.dumps(
            {"event": event, **fields, "worker_id": worker_id, "agent": agent, "level": level, "time": moment}
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

        Of a process that a signal ended, all that the interpreter said of that: in which line it was.

        Args:
            since: of the file's size, in bytes, before which nothing counts.
        """
        try:
            with self.path(agent, worker_id).open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(since, size - _LAST_BYTES, 0))
                text = stream.read().lstrip(b"\0").decode(errors="replace")
        except FileNotFoundError:
            return ""
        # Before it is cut into lines and thrown away: a value may have several.
        text = self.redactor(agent).text(text)
        said = text.splitlines()
        fatal = [number for number, line in enumerate(said) if line.startswith(_FATAL)]
        return "".join(f"\n{line}" for line in said[fatal[-1] if fatal else -_LAST_WORDS :])

    def size(self, agent: str, worker_id: str) -> int:
        """Where a log ends, in bytes since its first one."""
        path = self.path(agent, worker_id)
        return path.stat().st_size if path.exists() else 0

    def agents(self) -> list[str]:
        """Those that have logs."""
        if not self._agents.is_dir():
            return []
        return sorted(path.name for path in self._agents.iterdir() if path.is_dir())

    def logs_of(self, agent: str) -> list[str]:
        """Whose logs of an agent there are: worker ids, and "template"."""
        directory = self._agents / agent
        if not directory.is_dir():
            return []
        return sorted(path.name.removesuffix(_SUFFIX) for path in directory.glob(f"*{_SUFFIX}") if path.is_file())

    def agent_of(self, worker_id: str) -> str | None:
        """The agent of a worker that has a log, or None."""
        agent = worker_id.rpartition("-")[0]
        return agent if agent and self.path(agent, worker_id).exists() else None

    # --- keeping -------------------------------------------------------------------------------------------------

    def maintain(self, now_s: float) -> None:
        """Gives back what of all logs is too old or too much. Blocks."""
        for agent in self.agents():
            try:
                self._maintain(agent, now_s)
            except OSError as error:
                # A log that goes while it is looked at; the next round tries again.
                _log.warning("logs could not be trimmed", agent=agent, error=str(error))

    def _maintain(self, agent: str, now_s: float) -> None:
        policy = self.policy(agent)
        for name in self.logs_of(agent):
            path = self.path(agent, name)
            oldest_s = now_s - policy.retention_s
            if path.stat().st_mtime < oldest_s and name not in policy.living:
                path.unlink()
                continue
            retention.drop_older(path, policy.max_bytes, oldest_s)
            _, self._look_at[path] = retention.shorten(path, policy.max_bytes)
        directory = self._agents / agent
        for path in directory.iterdir():
            # Of a platform before this one, which moved old lines to files of their own.
            if path.suffix != _SUFFIX and path.is_file() and now_s - path.stat().st_mtime > policy.retention_s:
                path.unlink()
        if not any(directory.iterdir()):
            directory.rmdir()

    def hold_bounds(self) -> bool:
        """Gives back what is too much of logs that were written to; whether there were any. Quick: one stat a log."""
        found = False
        for path, size in list(self._look_at.items()):
            try:
                if path.stat().st_size >= size:
                    long, self._look_at[path] = retention.shorten(path, self.policy(path.parent.name).max_bytes)
                    found |= long
            except OSError:
                # It is gone, or `maintain` says what is wrong with it, and has it looked at again.
                self._look_at.pop(path, None)
        return found

    def watched(self) -> list[Path]:
        """The logs that may be written to."""
        return list(self._look_at)

    # --- reading -------------------------------------------------------------------------------------------------

    def past(
        self, agent: str, names: list[str], *, level: str = "", tail: int | None = None, since_s: float | None = None
    ) -> Iterator[Line]:
        """The lines there are, oldest first. Blocks."""
        return self._past(agent, dict.fromkeys(names, -1), level, tail, since_s)

    async def stream(
        self,
        agent: str,
        names: Callable[[], list[str]],
        *,
        level: str,
        tail: int | None,
        follow: bool,
        since_s: float | None = None,
    ) -> AsyncGenerator[Line, None]:
        """The lines there are, and with `follow` those to come.

        Args:
            names: whose logs; asked again while following, because workers come and go.

        Raises:
            InvalidArgument: the level.
        """
        level = lines.check_level(level)
        # Places first, so that what is written while the past is read is neither lost nor told twice.
        readers = {name: self._reader(agent, name) for name in names()} if follow else {}
        places = {name: reader.place for name, reader in readers.items()} or dict.fromkeys(names(), -1)
        before = self._past(agent, places, level, tail, since_s)
        while batch := await asyncio.to_thread(list, islice(before, _BATCH)):
            for line in batch:
                yield line
        while follow:
            readers = {name: readers.get(name) or _Reader(name) for name in names()}
            # A worker that writes without end, and nothing of the level, must not keep the pool from all else.
            written, batch = await asyncio.to_thread(self._following, agent, list(readers.values()), level)
            for line in batch:
                yield line
            if not written:
                await asyncio.sleep(_FOLLOW_INTERVAL_S)

    def _past(
        self, agent: str, places: dict[str, int], level: str, tail: int | None, since_s: float | None
    ) -> Iterator[Line]:
        policy = self.policy(agent)
        parts = [Part(label(name), self.path(agent, name), until, policy.max_bytes) for name, until in places.items()]
        found = self._clean(agent, past.read(parts, level=level, tail=tail, since_s=since_s))
        return _shown(agent, found, as_objects=policy.as_objects)

    def _reader(self, agent: str, name: str) -> "_Reader":
        """One at the end of the last whole line."""
        try:
            with self.path(agent, name).open("rb") as stream:
                status = os.fstat(stream.fileno())
                return _Reader(name, status.st_ino, file.whole_until(stream.fileno(), status.st_size))
        except FileNotFoundError:
            return _Reader(name)

    def _following(self, agent: str, readers: list["_Reader"], level: str) -> tuple[bool, list[Line]]:
        """Whether anything was written since, and what of it is of the level. Blocks."""
        fresh = [self._fresh(agent, reader) for reader in readers]
        stamped = lines.merged(fresh, time.time())
        shown = _shown(agent, self._clean(agent, stamped), as_objects=self.policy(agent).as_objects)
        return any(fresh), [line for line in shown if lines.at_least(line, level)]

    def _clean(self, agent: str, stamped: Iterable[Stamped]) -> Iterator[Stamped]:
        return ((time_s, self.clean(agent, line)) for time_s, line in stamped)

    def clean(self, agent: str, line: Line) -> Line:
        """A line without the agent's secrets: its worker leaves them out itself, but not past Python."""
        text = self.redactor(agent).text(line.text)
        return line if text == line.text else replace(line, text=text)

    def _fresh(self, agent: str, reader: "_Reader") -> list[Line]:
        try:
            with self.path(agent, reader.name).open("rb") as stream:
                return [past.parsed(label(reader.name), raw) for raw in reader.read(stream.fileno())]
        except FileNotFoundError:
            return []


class _Reader:
    """Where a follower stands in one log."""

    def __init__(self, name: str, inode: int = 0, place: int = 0) -> None:
        self.name = name
        self.place = place
        self._inode = inode

    def read(self, descriptor: int) -> list[bytes]:
        """The next whole lines."""
        status = os.fstat(descriptor)
        if status.st_ino != self._inode or status.st_size < self.place:
            self._inode, self.place = status.st_ino, 0  # another log of that name
        if status.st_size == self.place:
            return []
        return self._next(descriptor, status.st_size)

    def _next(self, descriptor: int, size: int) -> list[bytes]:
        self.place = max(self.place, file.first_data(descriptor, self.place))
        # The log may have grown and been trimmed since its size was asked for.
        piece = os.pread(descriptor, max(0, min(file.LONGEST_LINE_BYTES, size - self.place)), self.place)
        end = piece.rfind(b"\n") + 1
        if not end and len(piece) == file.LONGEST_LINE_BYTES:
            end = len(piece)
        self.place += end
        return piece[:end].removesuffix(b"\n").split(b"\n") if end else []


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def label(name: str) -> str:
    return "" if name == _TEMPLATE else name


def _shown(agent: str, stamped: Iterable[Stamped], *, as_objects: bool) -> Iterator[Line]:
    for time_s, line in stamped:
        # Quickly: what has a time is an object, and what a worker wrote itself says which one.
        if as_objects and (line.time_s is None or '"worker_id"' not in line.text):
            text = json.dumps(lines.completed(line, agent, time_s), ensure_ascii=False)
            yield Line(line.worker_id, text, line.level, time_s)
        else:
            yield line
