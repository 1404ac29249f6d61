"""Files that are whole whenever the machine stops."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from agentruntime.errors import DiskFull

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a file, or makes it: the old bytes or the new ones are there, never a part; on disk when it returns.

    The file is the owner's alone (0600). Blocks until the disk has it.

    Raises:
        DiskFull: there is no room; the old bytes are there.
    """
    with replacing(path) as stream:
        stream.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """As `write_atomically`, for what is written bit by bit: it is the file once the body ends well.

    Raises:
        DiskFull: there is no room; the old bytes are there.
    """
    with room_in(path.parent):
        descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:16]}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            Path(scratch).replace(path)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


@contextmanager
def room_in(directory: Path) -> Iterator[None]:
    """Around what writes below a directory.

    Raises:
        DiskFull: there is no room for it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise full(directory) from error


def full(directory: Path) -> DiskFull:
    """The error of a disk that has no room left."""
    return DiskFull(f"no space is left on the disk that holds {directory}; make room there, then try again")


def sync_directory(directory: Path) -> None:
    """Puts the names in a directory on disk: a file that was renamed is under its new name only then, fsync(2)."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
