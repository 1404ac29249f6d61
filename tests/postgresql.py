"""A PostgreSQL for tests: Debian's server, in a directory of its own, on a Unix socket there."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.waiting import until

_SUPERUSER = "postgres"


@dataclass
class Server:
    """One that answers.

    Args:
        directory: of its data and its socket.
        programs: the server's.
        user: whom it runs as; it refuses root.
    """

    directory: Path
    programs: Path
    user: str | None
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def data(self) -> Path:
        """Where it keeps its files."""
        return self.directory / "data"

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{uuid.uuid4().hex}"
        self.query(f"CREATE DATABASE {name}")
        return f"postgresql://{_SUPERUSER}@/{name}?host={self.directory}"

    def query(self, sql: str) -> str:
        """What the server says to a statement."""
        command: list[str | Path] = [
            self.programs / "psql",
            "-X",
            "-A",
            "-t",
            "-h",
            self.directory,
            "-U",
            _SUPERUSER,
            "-c",
            sql,
            "postgres",
        ]
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return answer.stdout

    def start(self) -> None:
        """Starts it and waits until it answers."""
        command: list[str | Path] = [
            self.programs / "postgres",
            "-D",
            self.data,
            "-k",
            self.directory,
            "-h",
            "",
            "-c",
            "shared_buffers=32MB",
            # The machine does not go down in these tests.
            "-c",
            "fsync=off",
        ]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_as(self.user), *command], stdout=log, stderr=log, start_new_session=True
            )
        until(self._answers, timeout_s=60)

    def stop(self) -> None:
        """Ends it, and all connections."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "log").read_text()
        return subprocess.run([self.programs / "pg_isready", "-q", "-h", self.directory], check=False).returncode == 0


def _as(user: str | None) -> list[str | Path]:
    """Before a command that is another user's: for Popen's `user` Python forks, which gRPC's threads here forbid."""
    return ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"] if user else []


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Runs a server with nothing in it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert found, "there is no PostgreSQL; on Debian or Ubuntu, as root: apt-get install postgresql"
    programs = found[-1].parent
    user = _SUPERUSER if os.geteuid() == 0 else None
    # Not the tests' own directory, which other users may not enter; its path fits a socket's name.
    directory = Path(tempfile.mkdtemp(prefix="postgresql-"))
    try:
        if user is not None:
            os.chown(directory, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        make: list[str | Path] = [
            programs / "initdb",
            "-D",
            directory / "data",
            "-U",
            _SUPERUSER,
            "-A",
            "trust",
            "-E",
            "UTF8",
        ]
        subprocess.run(
            [*_as(user), *make, "--no-locale", "--no-sync"], check=True, stdout=subprocess.DEVNULL, cwd=directory
        )
        server = Server(directory, programs, user)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory)
