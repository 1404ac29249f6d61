"""The container engine of the tests: one that answers here, else a `dockerd` of their own, which leaves nothing.

A private engine lies in one temporary directory, which its starter holds locked: one whose lock is free is what a
test run that was killed has left, and is removed by the next.
"""

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import docker.errors
import psutil

_DEFAULT = "unix:///var/run/docker.sock"
_PREFIX = "uapi-dockerd-"
# A loaded machine included; one that is idle takes a second.
_START_S, _STOP_S, _PING_S = 60, 30, 10
_POLL_S = 0.05


class NoEngineError(Exception):
    """No container engine can be had here; says why, and how to get one."""


@dataclass(frozen=True)
class Engine:
    """A container engine that answers."""

    # As DOCKER_HOST has it.
    address: str
    # The tests' Python image in it.
    base_image: str

    def client(self) -> docker.DockerClient:
        return docker.DockerClient(base_url=self.address)

    def agents_images(self) -> set[str]:
        """The ids of images that are upon the tests' base, and made of an agent image."""
        with contextlib.closing(self.client()) as client:
            [base, *_] = client.images.get(self.base_image).attrs["RootFS"]["Layers"]
            found = client.images.list(filters={"label": "dev.agentruntime.agent-image"})
            return {str(image.id) for image in found if image.attrs["RootFS"]["Layers"][:1] == [base]}

    def remove_images(self, images: Iterable[str]) -> None:
        with contextlib.closing(self.client()) as client:
            for image in images:
                # Gone with another, or of a container that is not the tests'.
                with contextlib.suppress(docker.errors.APIError):
                    client.images.remove(image)

    @property
    def environment(self) -> dict[str, str]:
        """For a platform that is to use this engine and this base image."""
        return {"DOCKER_HOST": self.address, "AGENT_POOL_BASE_IMAGE": self.base_image}


@contextlib.contextmanager
def address() -> Iterator[str]:
    """Where an engine answers, for as long as it is needed.

    Raises:
        NoEngineError: none answers, and none can be started.
    """
    there = os.environ.get("DOCKER_HOST", _DEFAULT)
    # A remote one does not have the pool's files.
    if there.startswith("unix://") and _answers(there):
        yield there
    else:
        with private() as made:
            yield made


def _answers(where: str) -> bool:
    # Not by the SDK, which leaves a socket open where it gets no answer.
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(_PING_S)
        try:
            asking.connect(where.removeprefix("unix://"))
            asking.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in asking.recv(64)
        except OSError:
            return False


@contextlib.contextmanager
def private() -> Iterator[str]:
    """Runs `dockerd` in a directory of its own; that and all it made is gone afterwards."""
    for what in ("dockerd", "setpriv"):
        if shutil.which(what) is None:
            raise NoEngineError(f"there is no {what}; on Debian or Ubuntu, as root: apt-get install docker.io")
    if os.geteuid() != 0:
        raise NoEngineError("only root can start dockerd; run the tests as root, or start Docker for this user")
    sweep()
    had_bridge = Path("/sys/class/net/docker0").exists()
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        directory = Path(name)
        with (directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            daemon = _daemon(directory)
            try:
                yield _answer(directory, daemon)
            finally:
                if daemon.poll() is None:
                    _remove_containers(directory)
                _end(directory)
                daemon.wait(_STOP_S)
                if not had_bridge:
                    subprocess.run(["ip", "link", "delete", "docker0"], capture_output=True, check=False)


def _daemon(directory: Path) -> subprocess.Popen[bytes]:
    # It ends in an orderly way when whoever started it dies, however that was.
    paths = {"host": f"unix://{directory}/s"} | {
        name: f"{directory}/{name}" for name in ("pidfile", "data-root", "exec-root")
    }
    argv = ["setpriv", "--pdeathsig", "TERM", "dockerd", *(f"--{name}={path}" for name, path in paths.items())]
    with (directory / "log").open("w") as log:
        return subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)


def _answer(directory: Path, daemon: subprocess.Popen[bytes]) -> str:
    """The engine's address, once it answers."""
    where = f"unix://{directory}/s"
    deadline = time.monotonic() + _START_S
    while not _answers(where):
        if daemon.poll() is not None or time.monotonic() > deadline:
            said = (directory / "log").read_text().strip().splitlines()
            raise NoEngineError(f"dockerd does not start: {said[-1] if said else 'it said nothing'}")
        time.sleep(_POLL_S)
    return where


def _remove_containers(directory: Path) -> None:
    """Of an engine that runs; one whose test run was killed ends by itself just then, with its containers."""
    where = f"unix://{directory}/s"
    if _answers(where):
        with contextlib.closing(docker.DockerClient(base_url=where, timeout=_STOP_S)) as client:
            for container in client.containers.list(all=True):
                with contextlib.suppress(docker.errors.APIError):
                    container.remove(force=True)


def _end(directory: Path) -> None:
    """Removes an engine's processes and its mounts; the files are left to the caller."""
    with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
        daemon = psutil.Process(int((directory / "pidfile").read_text()))
        # The file may be older than the process that has the number now.
        if str(directory) in " ".join(daemon.cmdline()):
            daemon.terminate()
            with contextlib.suppress(psutil.TimeoutExpired):
                daemon.wait(_STOP_S)
    left = _processes(directory)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, _STOP_S)
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed([path for path in mounts if path.startswith(f"{directory}/")]):
        subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)


def _processes(directory: Path) -> list[psutil.Process]:
    """What an engine has started and left: its helpers name its directory, containers are their children."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            name = Path(process.cmdline()[0]).name if process.cmdline() else ""
            if name.startswith(("dockerd", "containerd", "docker-proxy")) and str(directory) in str(
                process.cmdline()
            ):
                found |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return list(found.values())


def sweep() -> None:
    """Removes what test runs that were killed have left."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            lock = (directory / "lock").open("r+")
        except OSError:
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            _end(directory)
            shutil.rmtree(directory, ignore_errors=True)
