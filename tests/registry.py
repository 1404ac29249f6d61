"""A registry of images for a test: Debian's `docker-registry` on a free port of loopback, its data in a directory."""

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.waiting import until

USER, PASSWORD = "tester", "secret"
# bcrypt of the password, which is the one form that the registry reads.
_HTPASSWD = f"{USER}:$2b$04$RPAo1lEB8dpzpwvPPs/UouEX67E2Z19o/TQViWhKBbchUEXXPsY0G\n"


@dataclass(frozen=True)
class Registry:
    """One that answers."""

    # Host and port, as an image's name begins with them.
    host: str
    data: Path

    def blob(self, digest: str) -> Path:
        """Where it keeps a blob."""
        name = digest.removeprefix("sha256:")
        return self.data / "docker/registry/v2/blobs/sha256" / name[:2] / name / "data"


@contextlib.contextmanager
def serving(directory: Path, *, login: bool = False) -> Iterator[Registry]:
    """Runs a registry in an empty directory.

    Args:
        directory: of its data.
        login: whether it wants to know who asks.
    """
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("there is no docker-registry; on Debian or Ubuntu, as root: apt-get install docker-registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    passwords = directory / "htpasswd"
    passwords.write_text(_HTPASSWD)
    auth = f"auth: {{htpasswd: {{realm: tests, path: {passwords}}}}}\n" if login else ""
    config = directory / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {directory}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{auth}"
    )
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
    try:
        until(lambda: process.poll() is not None or _answers(port), timeout_s=30)
        assert process.poll() is None, (directory / "log").read_text()
        yield Registry(f"127.0.0.1:{port}", directory)
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
