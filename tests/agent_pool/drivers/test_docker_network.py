"""A container with the host's network is held to its rate."""

import contextlib
import os
import socket
import time

import pytest
from agentruntime import errors

from agent_pool.drivers import docker_network
from tests.engine import Engine

pytestmark = [pytest.mark.integration, pytest.mark.root]
SLOW_BPS = 20_000_000
_TIME_S = 2.0
# Waits to be let in, and sends until it is hung up on.
_SENDER = """
import contextlib, socket
connection = socket.create_connection(("127.0.0.1", {port}))
connection.recv(1)
fast = socket.create_connection(("127.0.0.1", {port}))
with contextlib.suppress(OSError):
    while fast.send(bytes(65536)):
        pass
"""


def test_a_container_is_held_to_its_rate(engine: Engine) -> None:
    assert docker_network.missing() == ""
    with contextlib.closing(engine.client()) as client, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        command = ["python3", "-c", _SENDER.format(port=listener.getsockname()[1])]
        container = client.containers.run(engine.base_image, command, detach=True, network_mode="host")
        try:
            ready, _ = listener.accept()
            container.reload()
            docker_network.limit(container.id or "", container.attrs["State"]["Pid"], SLOW_BPS)
            ready.send(b"x")
            limited, _ = listener.accept()
            with ready, limited:
                received_bytes, end = 0, time.monotonic() + _TIME_S
                while time.monotonic() < end:
                    received_bytes += len(limited.recv(2**20))
        finally:
            container.remove(force=True)
    assert SLOW_BPS / 2 < received_bytes * 8 / _TIME_S < 1.7 * SLOW_BPS


def test_what_is_no_container_of_the_engines_is_left_alone() -> None:
    with pytest.raises(errors.FailedPrecondition, match="leave out --network-limit"):
        docker_network.limit("0123", os.getpid(), SLOW_BPS)
