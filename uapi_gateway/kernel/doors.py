"""The sockets that workers find in their view, accepted with their peers' identities."""

import asyncio
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from agentruntime import log
from agentruntime.home import Home

from uapi_gateway.kernel.peers import Peer, Peers, UnknownPeer
from uapi_gateway.registry import Registry

# Connections of one agent's worker at a time to one of the sockets; a program needs one or two.
MOST_CONNECTIONS = 64
# Accepted in a row, before the event loop gets to do something else.
_BURST = 32
_BACKLOG = 512
# When the process has no descriptor left.
_PAUSE_S = 0.2
_log = log.get("uapi_gateway.doors")
# Gets a connection and whose it is; the connection is closed when it returns.
Handler = Callable[[socket.socket, Peer], Awaitable[None]]


class Door:
    """One socket for all agents where the platform is root, one for each agent otherwise.

    Args:
        home: the platform's.
        registry: which agents there are.
        name: of the socket in `Home.kernel_dir`.
        handle: gets each connection of a worker, non-blocking. What it raises is logged.
        kind: socket.SOCK_STREAM or SOCK_SEQPACKET.
    """

    def __init__(
        self,
        home: Home,
        registry: Registry,
        name: str,
        handle: Handler,
        kind: socket.SocketKind = socket.SOCK_STREAM,
    ) -> None:
        self._home = home
        self._registry = registry
        self._peers = Peers(home, registry)
        self._name = name
        self._handle = handle
        self._kind = kind
        # By agent; "" is all agents'.
        self._listeners: dict[str, socket.socket] = {}
        self._open: Counter[tuple[int, str, str]] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Accepts until it is left; then the connections are closed."""
        if os.geteuid() == 0:
            self._listen("")
        else:
            self._registry.listeners.append(self._follow)
            for each in self._registry.agents():
                self._follow(each.agent_id)
        try:
            yield
        finally:
            if self._follow in self._registry.listeners:
                self._registry.listeners.remove(self._follow)
            for agent in list(self._listeners):
                self._close(agent)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _follow(self, agent_id: str) -> None:
        agent = self._registry.get(agent_id)
        # One that registered itself is no worker of ours.
        wanted = agent is not None and agent.lease is None
        if wanted and agent_id not in self._listeners:
            self._listen(agent_id)
        elif not wanted and agent_id in self._listeners:
            self._close(agent_id)

    def _listen(self, agent: str) -> None:
        path = self._home.kernel_dir(agent) / self._name
        # As the pool makes it, whoever is first: workers have uids of their own.
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, self._kind)
        listener.setblocking(False)
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(_BACKLOG)
        self._listeners[agent] = listener
        asyncio.get_running_loop().add_reader(listener, self._accept, agent)

    def _close(self, agent: str) -> None:
        listener = self._listeners.pop(agent)
        asyncio.get_running_loop().remove_reader(listener)
        listener.close()
        path: Path = self._home.kernel_dir(agent) / self._name
        path.unlink(missing_ok=True)

    def _accept(self, agent: str) -> None:
        listener = self._listeners[agent]
        for _ in range(_BURST):
            try:
                connection, _address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                _log.error("no connection of an agent's can be accepted now", error=str(error))
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                loop.call_later(_PAUSE_S, self._resume, agent)
                return
            self._admit(connection, agent)

    def _resume(self, agent: str) -> None:
        if listener := self._listeners.get(agent):
            asyncio.get_running_loop().add_reader(listener, self._accept, agent)

    def _admit(self, connection: socket.socket, agent: str) -> None:
        try:
            peer = self._peers.identify(connection, agent)
        except UnknownPeer as error:
            _log.warning("a connection that is no worker's is refused", socket=self._name, why=str(error))
            connection.close()
            return
        key = (peer.uid, peer.agent, peer.worker_id)
        if self._open[key] >= MOST_CONNECTIONS:
            connection.close()
            return
        connection.setblocking(False)
        self._open[key] += 1
        task = asyncio.create_task(self._serve(connection, peer))
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, key))

    async def _serve(self, connection: socket.socket, peer: Peer) -> None:
        with connection, suppress(ConnectionError):
            await self._handle(connection, peer)

    def _done(self, key: tuple[int, str, str], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]
        if not task.cancelled() and (error := task.exception()):
            _log.error("a connection of an agent's failed", socket=self._name, worker=key[2], exc_info=error)
