"""Who connects to a socket of the platform's, as the kernel says.

Where the platform is root every worker has a uid of its own, and one socket serves all: SO_PEERCRED (unix(7)) tells
the uid that connected, the pool's file which worker that is. Otherwise all have the platform's uid, and each agent
has a socket of its own, which no other agent's view of the file system shows.

Nothing that comes over the connection is asked. A connection that a worker hands to somebody else stays that
worker's: what is done over it is done by the one who connected.
"""

import json
import os
import select
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from agentruntime.home import Home
from agentruntime.launch import PeerFile

from uapi_gateway.registry import Endpoint, Registry

# unix(7), struct ucred: pid, uid, gid.
_UCRED = struct.Struct("3i")
# asm-generic/socket.h; Linux 6.5
_SO_PEERPIDFD = 77


@dataclass(frozen=True)
class Peer:
    """Whose a connection is."""

    agent: str
    # "" where that cannot be told: workers that share a uid, before the pool has said which process each is.
    worker_id: str
    # 0 as above.
    revision: int
    uid: int
    pid: int

    @property
    def principal(self) -> str:
        return f"agent:{self.agent}"


class UnknownPeer(Exception):
    """It is no worker's; says why."""


class Peers:
    """Tells workers by their connections.

    Args:
        home: where the pool says who has which uid.
        registry: which workers there are.
    """

    def __init__(self, home: Home, registry: Registry) -> None:
        self._directory = home.peers
        self._registry = registry

    def identify(self, connection: socket.socket, agent: str = "") -> Peer:
        """Whose a connection is that was accepted just now.

        Args:
            connection: to a Unix socket of ours.
            agent: whose socket it was accepted on; "" for that of all agents.

        Raises:
            UnknownPeer: it is no worker's.
        """
        pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if not agent:
            return self._by_uid(connection, uid, pid)
        if uid != os.geteuid():
            raise UnknownPeer(f"uid {uid} is not the platform's")
        for endpoint in self._endpoints(agent):
            # A worker leads a session of its own (setsid(2)), into which its children are born.
            if endpoint.pid and endpoint.pid in (pid, _session(pid)):
                return Peer(agent, endpoint.worker_id, endpoint.revision, uid, pid)
        return Peer(agent, "", 0, uid, pid)

    def _by_uid(self, connection: socket.socket, uid: int, pid: int) -> Peer:
        try:
            said = PeerFile(**json.loads((self._directory / str(uid)).read_bytes()))
        except FileNotFoundError:
            raise UnknownPeer(f"uid {uid} is no worker's") from None
        if said.group and said.group not in (groups := _control_groups(connection, pid) or said.group):
            raise UnknownPeer(f"process {pid} has the uid of {said.worker_id} and is in {groups.split()}")
        return Peer(said.agent, said.worker_id, said.revision, uid, pid)

    def _endpoints(self, agent: str) -> tuple[Endpoint, ...]:
        found = self._registry.get(agent)
        return found.endpoints if found else ()


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def _control_groups(connection: socket.socket, pid: int) -> str:
    """Of the process that connected, as proc(5) has them; "" if it has ended, or may have."""
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text()
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except (FileNotFoundError, ProcessLookupError):
        return ""
    except OSError:
        # An older kernel has no such descriptor, and this pid might be another's by now: too unlikely to refuse for.
        return groups
    try:
        # Readable once it has ended; then its pid may be another's.
        return "" if select.select([pidfd], [], [], 0)[0] else groups
    finally:
        os.close(pidfd)
