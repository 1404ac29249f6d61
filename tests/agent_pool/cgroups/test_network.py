"""A group's network is limited in each direction, to what was said and not to a fraction of it."""

import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_pool.cgroups import detect, network

pytestmark = [pytest.mark.integration, pytest.mark.root]
BITS_PER_S = 20_000_000
_TIME_S = 2.0
# Joins the group, connects, and sends or receives until it is hung up on.
_PEER = """
import contextlib, socket, sys
group, port, direction = sys.argv[1:]
if group:
    open(group + "/cgroup.procs", "w").write("0")
connection = socket.create_connection(("127.0.0.1", int(port)))
with contextlib.suppress(OSError):
    while connection.send(bytes(65536)) if direction == "send" else connection.recv(65536):
        pass
"""


@pytest.fixture
def group() -> Iterator[Path]:
    parent = detect.here().v2
    assert parent is not None
    directory = parent / f"uapi-test-{secrets.token_hex(4)}"
    directory.mkdir()
    yield directory
    directory.rmdir()


def rate_bps(group: Path | str, direction: str) -> float:
    """What a process in the group, or in none, sends or gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        argv = [sys.executable, "-c", _PEER, str(group), str(listener.getsockname()[1]), direction]
        with subprocess.Popen(argv) as peer:
            connection, _ = listener.accept()
            with connection:
                moved_bytes, started = 0, time.monotonic()
                while time.monotonic() < started + _TIME_S:
                    moved_bytes += (
                        len(connection.recv(65536)) if direction == "send" else connection.send(bytes(65536))
                    )
                elapsed_s = time.monotonic() - started
            peer.kill()
            peer.wait()
    return moved_bytes * 8 / elapsed_s


def test_it_can_be_done_here() -> None:
    assert network.missing() == ""


@pytest.mark.parametrize("direction", ["send", "receive"])
def test_a_group_is_limited(group: Path, direction: str) -> None:
    assert rate_bps("", direction) > 10 * BITS_PER_S
    network.limit(group, BITS_PER_S)
    # With what may go at once at the beginning (300 ms' worth), and what waits in sockets.
    assert BITS_PER_S / 2 < rate_bps(group, direction) < 1.7 * BITS_PER_S


def test_a_group_that_is_not_there_cannot_be_limited() -> None:
    with pytest.raises(FileNotFoundError):
        network.limit(Path("/nonexistent"), BITS_PER_S)
