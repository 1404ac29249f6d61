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
                await self._match()
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
                entries, places = await asyncio.to_thread(self._chunk)
                if not entries:
                    await asyncio.sleep(_LOOK_INTERVAL_S)
                    continue
                try:
                    await link.send(f"agent.{self._agent}", entries)
                except OSError as error:
                    delay_s, failures = next_delay(patience.backoff, failures, 0.0, random.random())  # noqa: S311 — spreads load
                    reason = error.strerror or error
                    note(
                        self._agent,
                        f"log lines do not reach {self._aggregator}: {reason}; they are sent when it is back, "
                        "as far as they are still kept",
                    )
                    await asyncio.sleep(delay_s)
                    continue
                failures = 0
                note(self._agent, "")
                await asyncio.to_thread(self._sent.advance, places)

    def _chunk(self) -> tuple[list[Entry], dict[str, tuple[int, int]]]:
        """The next entries, and up to where they reach in which logs. Blocks."""
        names = self._logs.logs_of(self._agent)
        self._sent.forget_all_but(names)
        places: dict[str, tuple[int, int]] = {}
        fresh: list[list[Line]] = []
        left = _CHUNK_BYTES
        # Each log is the first in its turn, so that none that is written without end keeps the others waiting.
        self._turn += 1
        first = self._turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            if left <= 0:
                break
            with contextlib.suppress(FileNotFoundError):
                inode, before, place, found = self._next(name)
                if found:
                    left -= place - before
                    places[name] = (inode, place)
                    fresh.append(found)
        stamped = lines.merged(fresh, time.time())
        return [(at_s, lines.completed(line, self._agent, at_s)) for at_s, line in stamped], places

    def _next(self, name: str) -> tuple[int, int, int, list[Line]]:
        """Of a log: its inode, from where to where, and the lines between."""
        descriptor = os.open(self._logs.path(self._agent, name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            start, _ = file.kept(descriptor, self._logs.policy(self._agent).max_bytes)
            place = self._sent.place(name, status.st_ino, status.st_size)
            if 0 < place < start:
                _log.warning(
                    "lines went before they were sent", agent=self._agent, log=name, lost_bytes=start - place
                )
            begin = max(place, start)
            end = file.whole_until(descriptor, status.st_size)
            place, raws = next(file.forward(descriptor, begin, end), (begin, []))
            return status.st_ino, begin, place, [past.parsed(label(name), raw) for raw in raws if raw]
        finally:
            os.close(descriptor)
