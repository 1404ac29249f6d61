"""Whose connections are accepted, and that the kernel says whose they are."""

import asyncio
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
from agentruntime.home import Home
from agentruntime.launch import PeerFile

from tests.waiting import eventually
from uapi_gateway.kernel import doors
from uapi_gateway.kernel.doors import Door
from uapi_gateway.kernel.peers import Peer
from uapi_gateway.registry import Agent, Endpoint, Registry

_UID = 0x7FFF0001
_CONNECT = """
import os, socket, sys
os.setresuid(*[int(sys.argv[2])] * 3)
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
print(connection.recv(100).decode())
"""


@pytest.fixture
def home() -> Iterator[Home]:
    """Where other users get, as far as its directories let them."""
    root = Path(tempfile.mkdtemp(prefix="door"))
    root.chmod(0o711)
    home = Home(root)
    for directory in (home.run, home.peers):
        directory.mkdir(mode=0o711)
    yield home
    shutil.rmtree(root)


def _registry(*agents: str, pid: int = 0) -> Registry:
    registry = Registry()
    for agent in agents:
        endpoint = Endpoint("unix:/x", ready=True, worker_id=f"{agent}-01", revision=3, pid=pid)
        registry.put_pool_agent(Agent(agent, (), (endpoint,)))
    return registry


@asynccontextmanager
async def _opened(home: Home, registry: Registry) -> AsyncIterator[list[Peer]]:
    peers: list[Peer] = []

    async def handle(connection: socket.socket, peer: Peer) -> None:
        peers.append(peer)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(connection, f"{peer.principal} {peer.worker_id} {peer.revision}".encode())
        await loop.sock_recv(connection, 1)

    async with Door(home, registry, "s", handle).open():
        yield peers


async def _said_to(path: Path, uid: int) -> str:
    """What a process of that uid hears there; "" where it is not let in."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-I", "-S", "-c", _CONNECT, str(path), str(uid)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    return done.stdout.strip()


@pytest.mark.root
async def test_a_worker_is_known_by_its_uid(home: Home) -> None:
    (home.peers / str(_UID)).write_text(json.dumps(asdict(PeerFile("a", "a-02", 5))))
    async with _opened(home, _registry("a")) as peers:
        path = home.kernel_dir("a") / "s"
        assert path == home.kernel_dir("b") / "s"
        assert await _said_to(path, _UID) == "agent:a a-02 5"
        assert [each.uid for each in peers] == [_UID]
        # Another uid, and the platform's own.
        assert await _said_to(path, _UID + 1) == ""
        assert await _said_to(path, 0) == ""


@pytest.mark.root
async def test_a_process_with_a_workers_uid_outside_its_group_is_refused(home: Home) -> None:
    content = PeerFile("a", "a-02", 5, "a-02.c0ffee")
    (home.peers / str(_UID)).write_text(json.dumps(asdict(content)))
    async with _opened(home, _registry("a")):
        assert await _said_to(home.kernel_dir("a") / "s", _UID) == ""


@contextmanager
def _leader_whose_child_connects(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with a session of its own, as a worker is, whose child connects once something is written to it."""
    connect = shlex.join([sys.executable, "-I", "-S", "-c", _CONNECT, str(path), str(_UID)])
    with subprocess.Popen(
        ["sh", "-c", f"read -r _; {connect}; exit $?"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as leader:  # fmt: skip
        yield leader


async def _hear(path: Path) -> tuple[socket.socket, str]:
    connection = socket.socket(socket.AF_UNIX)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, str(path))
    return connection, (await loop.sock_recv(connection, 100)).decode()


@pytest.mark.root
async def test_without_root_an_agent_is_known_by_its_socket(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: _UID)
    # It makes them with the uid that it has; root's are not for others.
    (home.run / "k").mkdir(mode=0o711)
    for agent in ("a", "b"):
        registry = _registry("a", "b")
        async with _opened(home, registry):
            path = home.kernel_dir(agent) / "s"
            with _leader_whose_child_connects(path) as leader:
                registry.put_pool_agent(_registry(agent, pid=leader.pid).agents()[0])
                said, _ = await asyncio.to_thread(leader.communicate, "now", 60)
            assert said.strip() == f"agent:{agent} {agent}-01 3"
            assert await _said_to(path, _UID + 1) == ""
            # No worker's that is known.
            assert await _said_to(path, _UID) == f"agent:{agent}  0"


async def test_without_root_every_agent_of_the_pool_has_a_socket(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    registry = _registry("a")
    registry.register(Agent("outside", (), ()), 30, 0.0)
    async with _opened(home, registry):
        registry.put_pool_agent(Agent("b", (), ()))
        sockets = {agent: home.kernel_dir(agent) / "s" for agent in ("a", "b", "outside")}
        assert [agent for agent, path in sockets.items() if path.exists()] == ["a", "b"]
        registry.remove_pool_agent("b")
        assert not sockets["b"].exists()
    assert not sockets["a"].exists()


@pytest.mark.root
async def test_a_flood_of_connections_is_bounded(home: Home) -> None:
    (home.peers / str(os.geteuid())).write_text(json.dumps(asdict(PeerFile("a", "a-01", 1))))
    async with _opened(home, _registry("a")) as peers:
        path = home.kernel_dir("a") / "s"
        opened = [await _hear(path) for _ in range(doors.MOST_CONNECTIONS + 10)]
        assert [bool(said) for _, said in opened] == [True] * doors.MOST_CONNECTIONS + [False] * 10
        for connection, _ in opened[:10]:
            connection.close()

        async def again() -> bool:
            connection, said = await _hear(path)
            opened.append((connection, said))
            return bool(said)

        await eventually(again)
        assert len(peers) == doors.MOST_CONNECTIONS + 1
        for connection, _ in opened:
            connection.close()


async def test_a_restarted_gateway_has_it_again(home: Home) -> None:
    for _ in range(2):
        async with _opened(home, _registry("a")):
            assert (home.kernel_dir("a") / "s").is_socket()
