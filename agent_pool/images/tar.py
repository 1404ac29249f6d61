"""The members of a tar that nobody trusts, in order, with bounded memory and time.

`tarfile` alone takes a header's word for how long its extension is and where the next one begins, and raises more
than its own errors. Here a header's extension is short, the way through the file leads forward only, and all that is
wrong is InvalidArgument.
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO

from agentruntime import errors

# The longest that is read at once: an extended header, or a piece of a file's content.
LONGEST_READ_BYTES = 2**20


def members(stream: IO[bytes] | gzip.GzipFile) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Each member with the archive that it is read from.

    Args:
        stream: the uncompressed tar, at its beginning; can seek forward.

    Raises:
        InvalidArgument: it is no tar, cut off, or has a member whose size or kind cannot be.
    """
    try:
        with tarfile.open(fileobj=_Forward(stream), mode="r:") as archive:
            # Not extractall: Python before 3.11.4, which Debian 12 has, cannot refuse what leads out (PEP 706).
            for member in archive:
                if member.size < 0 or member.issparse():
                    raise errors.InvalidArgument(f"'{shown(member.name)}' has holes, or no size that a file can have")
                yield archive, member
                # It keeps all it has seen, which nobody asks for.
                archive.members = []  # type: ignore[attr-defined]  # not in the stubs
    # What is none of its own errors comes of numbers and texts in headers that it does not check.
    except (tarfile.TarError, ValueError, OverflowError, EOFError, zlib.error, OSError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of this machine's disk, say; nothing about the tar
        raise errors.InvalidArgument(
            f"this is not a readable tar: {shown(str(error)) or type(error).__name__}"
        ) from None


def content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    """The pieces of a file in a tar.

    Raises:
        InvalidArgument: it is no file, or cut off.
    """
    source = archive.extractfile(member) if member.isreg() else None
    if source is None:
        raise errors.InvalidArgument(f"'{shown(member.name)}' is neither a file, a directory nor a symbolic link")
    try:
        while piece := source.read(LONGEST_READ_BYTES):
            yield piece
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise errors.InvalidArgument(
            f"this is not a readable tar: '{shown(member.name)}' breaks off ({error})"
        ) from None


def shown(name: str) -> str:
    """A name from a tar as a message can have it: it may be long, and need not be text."""
    return name.encode(errors="backslashreplace").decode()[:200]


class _Forward(io.RawIOBase):
    """A stream that is read forward, in pieces that are not too long."""

    def __init__(self, inner: IO[bytes] | gzip.GzipFile) -> None:
        super().__init__()
        self._inner = inner

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= LONGEST_READ_BYTES:
            raise tarfile.ReadError("a header is too long")
        return self._inner.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < self._inner.tell():
            raise tarfile.ReadError("a member leads back")
        return self._inner.seek(offset)

    def tell(self) -> int:
        return self._inner.tell()
