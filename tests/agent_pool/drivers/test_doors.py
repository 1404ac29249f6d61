"""What a worker may have put in the place of its socket."""

import os
import socket
import stat
from pathlib import Path

import pytest
from agentruntime import errors

from agent_pool.drivers import doors

WORKER_UID = 0x7000_0001


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "w" / "1"
    doors.make(place, os.geteuid())
    return place


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def test_a_socket(directory: Path) -> None:
    listen(directory / "s")
    doors.close(directory, 1, os.geteuid())
    doors.make(directory, os.geteuid())
    assert list(directory.iterdir()) == []


def test_nothing(directory: Path) -> None:
    with pytest.raises(errors.AgentFailed, match="not there"):
        doors.close(directory, 1, os.geteuid())


@pytest.mark.parametrize("kind", ["link", "file", "directory"])
def test_something_else(directory: Path, tmp_path: Path, kind: str) -> None:
    listen(tmp_path / "pool.sock")
    door = directory / "s"
    if kind == "link":
        door.symlink_to("../../pool.sock")
    elif kind == "file":
        door.touch()
    else:
        door.mkdir()
    with pytest.raises(errors.AgentFailed, match="something else"):
        doors.close(directory, 1, os.geteuid())


@pytest.mark.root
def test_the_worker_owns_the_directory_only_until_then(directory: Path) -> None:
    doors.make(directory, WORKER_UID)
    assert directory.stat().st_uid == WORKER_UID
    listen(directory / "s")
    with pytest.raises(errors.AgentFailed, match="something else"):
        doors.close(directory, 1, WORKER_UID)  # a socket of somebody else
    os.chown(directory / "s", WORKER_UID, WORKER_UID)
    doors.close(directory, 1, WORKER_UID)
    status = directory.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o700)
