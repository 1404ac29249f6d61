"""Engines that cannot run agents, and what is said of them."""

import socket
from pathlib import Path
from typing import Any

import pytest
from agentruntime import errors

from agent_pool.drivers.docker_engine import Engine, refusal, unsuitable

HERE = {"OSType": "linux", "KernelVersion": "6.1", "SecurityOptions": ["name=seccomp,profile=default"]}


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("tcp://10.0.0.1:2375", "another machine"),
        ("ssh://root@there", "another machine"),
        ("unix:///nonexistent/docker.sock", "no container engine answers at /nonexistent/docker.sock"),
    ],
)
async def test_an_engine_that_cannot_be_had(host: str, says: str) -> None:
    engine = Engine(host)
    assert says in await engine.absent()
    with pytest.raises(errors.FailedPrecondition, match="--native"):
        await engine.connect()


async def test_a_socket_on_which_nobody_listens(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unheard:
        unheard.bind(str(tmp_path / "s"))
        assert "Connection refused" in await Engine(f"unix://{tmp_path}/s").absent()


@pytest.mark.parametrize(
    ("info", "says"),
    [
        (HERE, ""),
        ({**HERE, "KernelVersion": "6.2"}, "another machine"),
        ({**HERE, "OSType": "windows"}, "another machine"),
        ({**HERE, "SecurityOptions": ["name=rootless"]}, "other users than the pool's"),
        ({**HERE, "SecurityOptions": ["name=userns"]}, "other users than the pool's"),
    ],
)
def test_which_engines_are_suitable(info: dict[str, Any], says: str) -> None:
    assert (says in unsuitable(info, "6.1")) if says else unsuitable(info, "6.1") == ""


@pytest.mark.parametrize(
    ("explanation", "kind", "says"),
    [
        ('could not select device driver "" with capabilities: [[gpu]]', errors.FailedPrecondition, "Toolkit"),
        ("failed to initialize logging driver: dial tcp", errors.FailedPrecondition, "log driver"),
        ("write /x: no space left on device", errors.DiskFull, "docker system prune"),
        ("Minimum memory limit allowed is 6MB", errors.FailedPrecondition, "refused: Minimum memory limit"),
    ],
)
def test_what_an_engine_refuses(explanation: str, kind: type[errors.AgentError], says: str) -> None:
    error = refusal(explanation)
    assert isinstance(error, kind)
    assert says in error.message
