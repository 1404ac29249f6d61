"""One log file: what of it is kept, its lines forward and backward, and how its old part goes.

The old part goes by a hole at the front of the file (fallocate(2), FALLOC_FL_PUNCH_HOLE): the blocks are given back,
and each byte stays at its position for as long as the file is there. So a writer that appends, a reader and whoever
sends lines elsewhere need not know of each other. docs/decisions/0021.
"""

import ctypes
import errno
import os
from collections.abc import Iterator

# linux/falloc.h
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_CHUNK_BYTES = 2**18
# A line longer than this is read in pieces.
LONGEST_LINE_BYTES = 2**20
_LARGEST_BLOCK_BYTES = 2**16
# A file this long begins anew, since ext4 has none above 16 TiB.
_LONGEST_FILE_BYTES = 4 * 2**40


def kept(descriptor: int, max_bytes: int) -> tuple[int, int]:
    """The positions between which a log's last lines are, `max_bytes` of them; the first is at a line's start."""
    end = os.fstat(descriptor).st_size
    wanted = max(0, end - max_bytes)
    start = min(end, first_data(descriptor, wanted))
    # A hole ends within a block, whose first bytes are zero then; what is behind them is the start of a line.
    edge = first_data(descriptor, 0)
    # The log may have grown and been trimmed meanwhile, so that all up to the end is gone.
    zeros = os.pread(descriptor, max(0, min(_LARGEST_BLOCK_BYTES, end - edge)), edge)
    edge += len(zeros) - len(zeros.lstrip(b"\0"))
    if start <= edge:
        return min(edge, end), end
    if start == wanted and os.pread(descriptor, 1, start - 1) != b"\n":
        start = next_line(descriptor, start, end)
    return start, end


def held_bytes(descriptor: int) -> int:
    """From the first byte that was not given back to the end."""
    end = os.fstat(descriptor).st_size
    return end - first_data(descriptor, 0)


def next_line(descriptor: int, position: int, end: int) -> int:
    """The start of the first line that begins behind a position; `end` if none does within the longest line."""
    for begin in range(position, min(end, position + LONGEST_LINE_BYTES), _CHUNK_BYTES):
        piece = os.pread(descriptor, min(_CHUNK_BYTES, end - begin), begin)
        if (found := piece.find(b"\n")) >= 0:
            return begin + found + 1
    return min(end, position + LONGEST_LINE_BYTES)


def whole_until(descriptor: int, end: int) -> int:
    """Where the last whole line before a position ends."""
    start = max(0, end - LONGEST_LINE_BYTES)
    return start + os.pread(descriptor, end - start, start).rfind(b"\n") + 1


def forward(descriptor: int, start: int, end: int) -> Iterator[tuple[int, list[bytes]]]:
    """Lines without their newlines, in batches, each with the position behind it; the last may be unfinished."""
    rest = b""
    while start < end and (piece := os.pread(descriptor, min(_CHUNK_BYTES, end - start), start)):
        start += len(piece)
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) >= LONGEST_LINE_BYTES:
            whole, rest = [*whole, rest], b""
        if whole:
            yield start - len(rest), whole
    if rest:
        yield start, [rest]


def backward(descriptor: int, start: int, end: int) -> Iterator[list[bytes]]:
    """The same lines, the last batch first; within a batch they are in order."""
    rest = b""
    while end > start:
        begin = max(start, end - _CHUNK_BYTES)
        piece = os.pread(descriptor, end - begin, begin) + rest
        rest, end = b"", begin
        if begin > start:
            head, newline, piece = piece.partition(b"\n")
            rest = head + newline
            if len(rest) >= LONGEST_LINE_BYTES:
                piece, rest = rest + piece, b""
        if piece:
            yield piece.removesuffix(b"\n").split(b"\n")


def trim(descriptor: int, position: int) -> None:
    """Gives back what is before a position. Where the file system cannot (man fallocate says which can), all goes."""
    before = os.fstat(descriptor)
    if before.st_size > _LONGEST_FILE_BYTES:
        os.ftruncate(descriptor, 0)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if libc.fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, 0, position):
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(code, os.strerror(code))
        os.ftruncate(descriptor, 0)
    elif os.fstat(descriptor).st_size == before.st_size:
        # It tells when the log was last written, which a hole is not; what came meanwhile is.
        os.utime(descriptor, ns=(before.st_atime_ns, before.st_mtime_ns))


def first_data(descriptor: int, position: int) -> int:
    """The first position from there on that is in no hole; the end if there is none."""
    try:
        return os.lseek(descriptor, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.fstat(descriptor).st_size
