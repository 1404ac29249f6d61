"""Where agents' connections leave the machine: on listening sockets of their workers, to hosts that they may reach.

A worker hands its listening sockets over (`agentruntime.egress`). Nothing that it says is taken for granted. It says
which of the agent's ways out a socket is for; whether there is such a way is decided here, when somebody connects, by
what the agent may do then. So a worker that lies gets no further than one that does not.
"""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol

from agentruntime import egress, errors, log
from agentruntime.home import Home
from agentruntime.sections import egress_target

from uapi_gateway.egress.acceptor import Acceptor
from uapi_gateway.egress.pump import Pump, break_off
from uapi_gateway.egress.reaching import Closed, Reaching, Unreachable
from uapi_gateway.kernel.doors import Door
from uapi_gateway.kernel.floods import Floods
from uapi_gateway.kernel.peers import Peer
from uapi_gateway.registry import Permissions, Registry

Outcome = Literal["allowed", "denied", "failed"]
# Between two looks for connections on which nothing moves.
_LOOK_S = 10.0
# One side has ended, and the other says nothing any more.
_HALF_CLOSED_S = 300.0
# For an acceptor to end by itself.
_END_S = 1.0
_log = log.get("uapi_gateway.egress")


class Audit(Protocol):
    """Of `uapi_gateway.kernel.audit.AuditLog`, what is used here."""

    async def record(
        self, *, principal: str, action: str, target: str, outcome: Outcome, detail: str = "", worker_id: str = ""
    ) -> None: ...


@dataclass(frozen=True)
class Limits:
    """How much may go on at once."""

    # Connections of one worker, and of all of them; more wait in the worker's backlog.
    each: int = 256
    all: int = 4096
    # A connection on which nothing moves for so long is broken off.
    idle_s: float = 3600.0


@dataclass
class Figures:
    """Of one agent, since the gateway started."""

    open: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    bytes_sent: int = 0
    bytes_received: int = 0


@dataclass
class _Worker:
    """One that has handed over."""

    peer: Peer
    channel: socket.socket
    acceptor: Acceptor
    slots: threading.Semaphore


class Outlets:
    """Of one gateway.

    Args:
        registry: knows what agents may do.
        audit: where each connection is recorded, before a byte of it is carried.
        limits: how much may go on at once.
    """

    def __init__(self, registry: Registry, audit: Audit, limits: Limits | None = None) -> None:
        self._registry = registry
        self._audit = audit
        self._limits = limits or Limits()
        self._slots = threading.Semaphore(self._limits.all)
        self._reaching = Reaching()
        self._workers: dict[int, _Worker] = {}
        self._pumps: dict[Pump, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._figures: dict[str, Figures] = {}
        # Of what is allowed: an agent that connects a thousand times must not push all else out of the audit log.
        self._floods = Floods()

    def figures(self) -> dict[str, Figures]:
        """By agent."""
        found = {agent: replace(figures) for agent, figures in self._figures.items()}
        for pump, agent in self._pumps.items():
            found[agent].bytes_sent += pump.bytes_sent
            found[agent].bytes_received += pump.bytes_received
        return found

    @contextlib.asynccontextmanager
    async def opened(self, home: Home) -> AsyncIterator[None]:
        """Has workers hand over, until it is left; then everything ends."""
        door = Door(home, self._registry, egress.SOCKET_NAME, self.serve, socket.SOCK_SEQPACKET)
        try:
            async with door.open():
                yield
        finally:
            await self.close()

    async def serve(self, channel: socket.socket, peer: Peer) -> None:
        """Takes a worker's listening sockets until it ends, or another channel of its takes over.

        Args:
            channel: of type SOCK_SEQPACKET, accepted from the worker. Does not block.
            peer: whose it is, as the kernel says.
        """
        # Not its name: a worker's successor has the same, while both are there. Where all have the platform's uid, a
        # process of a worker's may be taken for another worker.
        key = peer.uid if peer.uid != os.geteuid() else -peer.pid
        if before := self._workers.pop(key, None):
            with contextlib.suppress(OSError):
                before.channel.shutdown(socket.SHUT_RDWR)
            await self._end(before.acceptor)
        if key in self._workers:
            return  # another was faster
        worker = self._workers[key] = self._worker(channel, peer)
        try:
            while (received := await _received(channel)) is not None:
                if not self._take(worker, *received):
                    _log.warning("a worker says what no worker says", worker_id=peer.worker_id)
                    return
        finally:
            if self._workers.get(key) is worker:
                del self._workers[key]
            await self._end(worker.acceptor)

    async def run(self) -> None:
        """Ends connections on which nothing moves, and records what was only counted. Does not return."""
        while True:
            await asyncio.sleep(_LOOK_S)
            now_s = time.monotonic()
            for pump in self._pumps:
                if now_s - pump.moved_at_s > (_HALF_CLOSED_S if pump.half_closed else self._limits.idle_s):
                    pump.end()
            for rest in self._floods.over(now_s):
                with contextlib.suppress(errors.AgentError):  # the log has it
                    detail = f"and {rest.count} more within a minute"
                    await self._record(rest.principal, rest.action, "allowed", detail)

    async def close(self) -> None:
        """Ends everything."""
        for worker in self._workers.values():
            worker.channel.shutdown(socket.SHUT_RDWR)
        await asyncio.gather(*(self._end(worker.acceptor) for worker in list(self._workers.values())))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._reaching.close()

    def _worker(self, channel: socket.socket, peer: Peer) -> _Worker:
        loop = asyncio.get_running_loop()
        slots = threading.Semaphore(self._limits.each)

        def take(entry: str, connection: socket.socket) -> None:
            try:
                loop.call_soon_threadsafe(begin, entry, connection)
            except RuntimeError:  # the loop has ended
                connection.close()

        def begin(entry: str, connection: socket.socket) -> None:
            self._start(self._carry(worker, entry, connection))

        worker = _Worker(peer, channel, Acceptor(take, [slots, self._slots]), slots)
        return worker

    def _take(self, worker: _Worker, entry: str, descriptor: int | None) -> bool:
        """Takes up one message; False if no worker of ours would say that."""
        if descriptor is None:
            return False
        try:
            egress_target(entry)
        except ValueError:
            os.close(descriptor)
            return False
        worker.acceptor.give(entry, descriptor)
        return True

    async def _end(self, acceptor: Acceptor) -> None:
        acceptor.end()
        await asyncio.to_thread(acceptor.join, _END_S)
        if not acceptor.ended:
            _log.warning("a worker had the gateway wait for a connection that it took itself")
            acceptor.force()

    def _start(self, running: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(running)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, worker: _Worker, entry: str, inside: socket.socket) -> None:
        figures = self._figures.setdefault(worker.peer.agent, Figures())
        figures.open += 1
        try:
            with contextlib.suppress(errors.AgentError):  # what cannot be recorded is not done; the log has it
                outside, outcome = await self._reach(worker, entry)
                figures.outcomes[outcome] += 1
                if outside is not None:
                    await self._pump(worker.peer.agent, figures, inside, outside)
        finally:
            figures.open -= 1
            if inside.fileno() >= 0:
                break_off(inside)
            worker.slots.release()
            self._slots.release()

    async def _reach(self, worker: _Worker, entry: str) -> tuple[socket.socket | None, Outcome]:
        """Connects, if the agent may, and records it.

        Raises:
            AgentError: it could not be recorded, and there is no connection.
        """
        agent = self._registry.get(worker.peer.agent)
        permissions = agent.permissions if agent else Permissions()
        outside: socket.socket | None = None
        outcome: Outcome = "denied"
        detail = f"needs permissions.egress: [{entry}] in agent.yaml"
        if entry in permissions.egress:
            connect = partial(self._reaching.connect, *egress_target(entry))
            try:
                outside = await connect(anywhere=entry in permissions.operators_egress)
                outcome, detail = "allowed", ""
            except Closed as error:
                detail = f"{error}; an operator may open it with --egress {entry}"
            except Unreachable as error:
                outcome, detail = "failed", str(error)
        principal = worker.peer.principal
        if outcome == "allowed" and not self._floods.admits(principal, entry):
            return outside, outcome
        try:
            await self._record(principal, entry, outcome, detail, worker.peer.worker_id)
        except BaseException:
            if outside is not None:
                outside.close()
            raise
        return outside, outcome

    async def _record(self, principal: str, entry: str, outcome: Outcome, detail: str, worker_id: str = "") -> None:
        await self._audit.record(
            principal=principal, action="egress", target=entry, outcome=outcome, detail=detail, worker_id=worker_id
        )

    async def _pump(self, agent: str, figures: Figures, inside: socket.socket, outside: socket.socket) -> None:
        inside.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pump = Pump(inside, outside)
        self._pumps[pump] = agent
        try:
            await pump.run()
        finally:
            del self._pumps[pump]
            figures.bytes_sent += pump.bytes_sent
            figures.bytes_received += pump.bytes_received


async def _received(channel: socket.socket) -> tuple[str, int | None] | None:
    """The next message: an entry, and a descriptor if one came with it; None at the end."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(channel, readable.set)
    try:
        while True:
            await readable.wait()
            readable.clear()
            try:
                text, descriptors, _, _ = socket.recv_fds(channel, egress.LONGEST_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                continue
            except OSError:
                return None
            if not text and not descriptors:
                return None
            return text.decode(errors="replace"), descriptors[0] if descriptors else None
    finally:
        loop.remove_reader(channel)
