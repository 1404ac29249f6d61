"""Sends agents' log lines to the aggregators that they name, by following the logs."""

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agentruntime import log

from agent_pool.logs import file, lines, past
from agent_pool.logs.forward import Entry, Link
from agent_pool.logs.lines import Line
from agent_pool.logs.sent import Sent
from agent_pool.logs.store import LogStore, label
from agent_pool.restart import Backoff, next_delay

_LOOK_INTERVAL_S = 0.5
# Of a chunk: all that a sender holds in memory.
_CHUNK_BYTES = 2**20
_NONE = "none"
_log = log.get("agent_pool.logs")


@dataclass(frozen=True)
class Patience:
    """With a receiver."""

    ack_timeout_s: float = 10.0
    backoff: Backoff = field(default_factory=lambda: Backoff(first_delay_s=0.5, longest_delay_s=30.0))


class Shipping:
    """Of all agents of a pool."""

    def __init__(
        self, logs: LogStore, directory: Path, note: Callable[[str, str], None], patience: Patience | None = None
    ) -> None:
        """`note` is told of an agent why its lines cannot be sent, or "" once they can; `directory` is for Sent."""
        self._logs = logs
        self._directory = directory
        self._note = note
        self._patience = patience or Patience()
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until it is cancelled; what was not sent then is sent by the next pool."""
        try:
            while True:
                try:
                    await self._match()
                except Exception as error:
                    # Whatever it is, the next round tries again.
                    _log.error("who wants log lines could not be seen", exc_info=error)
                await asyncio.sleep(_LOOK_INTERVAL_S)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _match(self) -> None:
        """Has a sender for each agent that wants one, and no others."""
        agents = await asyncio.to_thread(self._logs.agents)
        wanted = {(agent, self._logs.policy(agent).aggregator) for agent in agents}
        wanted = {(agent, aggregator) for agent, aggregator in wanted if aggregator != _NONE}
        for key in [key for key, task in self._tasks.items() if key not in wanted or task.done()]:
            task = self._tasks.pop(key)
            task.cancel()
            (ended,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(ended, Exception):
                _log.error("logs are not sent for a moment", agent=key[0], exc_info=ended)
            self._note(key[0], "")
        for agent, aggregator in wanted - self._tasks.keys():
            sender = Sender(self._logs, agent, aggregator, Sent(self._directory / f"{agent}.json"))
            self._tasks[agent, aggregator] = asyncio.create_task(sender.run(self._note, self._patience))


@dataclass(frozen=True)
class _Piece:
    """Of one log: the lines between two positions."""

    inode: int
    begin: int
    end: int
    lines: list[Line]
    # What went by age or size before it was sent.
    lost_bytes: int


@dataclass(frozen=True)
class Chunk:
    """What is sent next."""

    entries: list[Entry]
    # Up to where, by log: the file's inode and the position.
    places: dict[str, tuple[int, int]]
    lost_bytes: int


class Sender:
    """Of one agent's lines, to one receiver."""

    def __init__(self, logs: LogStore, agent: str, aggregator: str, sent: Sent) -> None:
        self._logs = logs
        self._agent = agent
        self._aggregator = aggregator
        self._sent = sent
        self._turn = 0

    async def run(self, note: Callable[[str, str], None], patience: Patience) -> None:
        """Until it is cancelled."""
        host, _, port = self._aggregator.removeprefix("fluentd://").rpartition(":")
        link = Link(host, int(port), patience.ack_timeout_s)
        failures = 0
        with contextlib.closing(link):
            while True:
                chunk = await asyncio.to_thread(self._chunk)
                if not chunk.places:
                    await asyncio.sleep(_LOOK_INTERVAL_S)
                    continue
                try:
                    if chunk.entries:  # there may have been empty lines alone
                        await link.send(f"agent.{self._agent}", chunk.entries)
                except (
                    OSError,
                    ValueError,
                    OverflowError,
                ) as error:  # the latter two: no such host name, no such port
                    delay_s, failures = next_delay(patience.backoff, failures, 0.0, random.random())  # noqa: S311 — spreads load
                    reason = _reason(error)
                    note(
                        self._agent,
                        f"log lines do not reach {self._aggregator}: {reason}; they are sent when it is back, "
                        "as far as they are still kept",
                    )
                    await asyncio.sleep(delay_s)
                    continue
                failures = 0
                note(self._agent, "")
                await asyncio.to_thread(self._sent.advance, chunk.places)
                if chunk.lost_bytes:
                    _log.warning("lines went before they were sent", agent=self._agent, lost_bytes=chunk.lost_bytes)

    def _chunk(self) -> Chunk:
        """Blocks."""
        names = self._logs.logs_of(self._agent)
        self._sent.forget_all_but(names)
        places: dict[str, tuple[int, int]] = {}
        fresh: list[list[Line]] = []
        left, lost_bytes = _CHUNK_BYTES, 0
        # Each log is the first in its turn, so that none that is written without end keeps the others waiting.
        self._turn += 1
        first = self._turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            if left <= 0:
                break
            with contextlib.suppress(FileNotFoundError):
                piece = self._next(name)
                if piece.end > piece.begin:
                    left -= piece.end - piece.begin
                    lost_bytes += piece.lost_bytes
                    places[name] = (piece.inode, piece.end)
                    fresh.append(piece.lines)
        stamped = lines.merged(fresh, time.time())
        entries = [(at_s, lines.completed(line, self._agent, at_s)) for at_s, line in stamped]
        return Chunk(entries, places, lost_bytes)

    def _next(self, name: str) -> _Piece:
        descriptor = os.open(self._logs.path(self._agent, name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            place = self._sent.place(name, status.st_ino, status.st_size)
            if place == status.st_size:
                return _Piece(status.st_ino, place, place, [], 0)
            start, _ = file.kept(descriptor, self._logs.policy(self._agent).max_bytes)
            lost_bytes = start - place if 0 < place < start else 0
            begin = max(place, start)
            whole = file.whole_until(descriptor, status.st_size)
            end, raws = next(file.forward(descriptor, begin, whole), (begin, []))
            found = [self._logs.clean(self._agent, past.parsed(label(name), raw)) for raw in raws if raw]
            return _Piece(status.st_ino, begin, end, found, lost_bytes)
        finally:
            os.close(descriptor)


def _reason(error: Exception) -> str:
    """In the system's words; asyncio's repeat the address. Names that cannot be resolved have numbers below zero."""
    if not isinstance(error, OSError):
        return str(error)
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
