"""The directory in which a worker makes its socket, and which is closed behind it.

Everything that reaches a worker (the gateway, the pool's health check) connects to that path on the host, so whoever
can put something else there chooses what they connect to: a link to the pool's own socket would make an agent the
pool. A worker therefore owns the directory only until it listens.
"""

import os
import shutil
import stat
from pathlib import Path

from agentruntime import errors
from agentruntime.launch import socket_name


def make(directory: Path, uid: int) -> None:
    """Makes the directory anew, for a worker of that uid. The one above it belongs to the pool."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700, parents=True)
    if uid != os.geteuid():
        os.chown(directory, uid, uid)


def close(directory: Path, slot: int, uid: int) -> None:
    """Takes the directory from a worker that says it listens, then makes sure that what is in it is its socket.

    In this order: once the directory is the pool's, nobody else can change what was looked at. Where the pool is not
    root, worker and pool have one uid, and this checks but cannot close.

    Raises:
        AgentFailed: there is something else, or nothing.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if uid != os.geteuid():
            os.fchown(descriptor, os.geteuid(), os.getegid())
        # Not even for its siblings to look into.
        os.fchmod(descriptor, 0o700)
        try:
            found = os.stat(Path(socket_name(slot)).name, dir_fd=descriptor, follow_symlinks=False)
        except FileNotFoundError:
            raise errors.AgentFailed("it says that it listens, and its socket is not there") from None
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != uid:
            raise errors.AgentFailed("it put something else in the place of its socket; an agent must leave it alone")
    finally:
        os.close(descriptor)
