"""Takes the old part out of a log that its writer holds open for appending, without the writer's help.

The old part is copied to `<log>.1` (older parts move up), then cut off the front of the live file. Where the
file system can (ext4, XFS), FALLOC_FL_COLLAPSE_RANGE (fallocate(2)) does that in place, so that no line is ever
lost; it works in whole blocks, so a line may lie half in one part and half in the next, and the parts read one
after the other are whole again. Elsewhere the file is truncated: lines written between copy and cut are lost.
"""

import ctypes
import errno
import os
import shutil
from pathlib import Path

_COLLAPSE_RANGE = 0x08  # linux/falloc.h
_COPY_BYTES = 2**20


def parts(live: Path) -> list[Path]:
    """The rotated parts of a log, oldest first."""
    numbered = (path for path in live.parent.glob(f"{live.name}.*") if path.suffix[1:].isdigit())
    return sorted(numbered, key=lambda path: -int(path.suffix[1:]))


def rotate(live: Path) -> int:
    """Moves the old part of a log to `<log>.1`; returns how many bytes went. Blocks."""
    with live.open("r+b") as stream:
        status = os.fstat(stream.fileno())
        # Collapsing may not reach the end of the file.
        cut = (status.st_size - 1) // status.st_blksize * status.st_blksize
        if cut <= 0:
            return 0
        scratch = live.with_name(f"{live.name}.new")
        _copy(stream.fileno(), scratch, cut)
        for path in parts(live):
            path.rename(live.with_name(f"{live.name}.{int(path.suffix[1:]) + 1}"))
        scratch.rename(live.with_name(f"{live.name}.1"))
        if not _collapse(stream.fileno(), cut):
            with live.with_name(f"{live.name}.1").open("ab") as rest:
                stream.seek(cut)
                shutil.copyfileobj(stream, rest)
                cut = stream.tell()
                stream.truncate(0)
        return cut


def _copy(descriptor: int, target: Path, count: int) -> None:
    with target.open("wb") as out:
        done = 0
        while done < count and (part := os.pread(descriptor, min(_COPY_BYTES, count - done), done)):
            out.write(part)
            done += len(part)


def _collapse(descriptor: int, count: int) -> bool:
    """False where the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if libc.fallocate(descriptor, _COLLAPSE_RANGE, 0, count) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(code, os.strerror(code))
