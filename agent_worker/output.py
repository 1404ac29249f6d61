"""What a worker prints: line by line into its log, and never at the expense of the call that prints."""

import errno
import io
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Log(io.FileIO):
    """Loses what a full disk has no room for."""

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            return memoryview(data).nbytes


def lines(descriptor: int) -> TextIO:
    """A text stream to a log; the descriptor stays its caller's.

    A killed process takes no finished line with it.
    """
    raw = io.BufferedWriter(_Log(descriptor, "wb", closefd=False))
    return io.TextIOWrapper(raw, "utf-8", errors="backslashreplace", line_buffering=True)
