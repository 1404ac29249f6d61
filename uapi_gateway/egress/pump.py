"""Carries bytes between two connected sockets, both ways, until both sides have ended.

Of what one side sends, at most one piece is held while the other side does not take it, and nothing more is read:
TCP slows the sender down. Reading into one buffer that all connections share, and sending from it, was as fast as
splice(2), with a third of the descriptors (docs/decisions/0065).
"""

import asyncio
import socket
import struct
import time
from collections.abc import Callable

# What a connection may hold in each direction.
PIECE_BYTES = 2**17
# Of one connection at a time, so that others have their turn.
_PIECES = 4
# All pumps run in one thread, and none holds the buffer beyond a call.
_BUFFER = memoryview(bytearray(PIECE_BYTES))
_BROKEN = struct.pack("ii", 1, 0)


def break_off(connection: socket.socket) -> None:
    """Closes it so that its peer sees a reset; socket(7), SO_LINGER."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _BROKEN)
    connection.close()


class Pump:
    """Of one pair of sockets, which are its own, do not block, and are closed when `run` returns.

    Args:
        inside: the worker's side.
        outside: the other.
    """

    def __init__(self, inside: socket.socket, outside: socket.socket) -> None:
        self._sockets = (inside, outside)
        # Since when nothing has moved, by time.monotonic().
        self.moved_at_s = time.monotonic()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sent = _Direction(inside, outside, self)
        self._received = _Direction(outside, inside, self)

    @property
    def bytes_sent(self) -> int:
        """By the worker."""
        return self._sent.count

    @property
    def bytes_received(self) -> int:
        return self._received.count

    @property
    def half_closed(self) -> bool:
        """Whether one side has said all it had to say."""
        return self._sent.ended or self._received.ended

    async def run(self) -> None:
        """Returns when both sides have ended, or one has broken off; then the other sees that, too."""
        directions = (self._sent, self._received)
        try:
            for direction in directions:
                direction.begin()
            await self._over
        finally:
            for direction in directions:
                direction.leave()
            whole = all(direction.ended for direction in directions)
            for connection in self._sockets:
                if whole:
                    connection.close()
                else:
                    break_off(connection)

    def end(self) -> None:
        """Breaks it off, if it is not over yet."""
        if not self._over.done():
            self._over.set_result(None)

    def moved(self) -> None:
        self.moved_at_s = time.monotonic()
        if self._sent.ended and self._received.ended:
            self.end()


class _Direction:
    """From one socket to the other."""

    def __init__(self, source: socket.socket, sink: socket.socket, pump: Pump) -> None:
        self._source = source
        self._sink = sink
        self._pump = pump
        self._loop = asyncio.get_running_loop()
        # Read, and not taken by the sink yet.
        self._rest: memoryview | None = None
        self.count = 0
        # The source has sent its last byte, and the sink knows it.
        self.ended = False

    def begin(self) -> None:
        self._loop.add_reader(self._source, self._guarded, self._fill)

    def leave(self) -> None:
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._pump.end()  # one side is gone
            return
        self._pump.moved()

    def _fill(self) -> None:
        for _ in range(_PIECES):
            count = self._source.recv_into(_BUFFER)
            if count == 0:
                self._loop.remove_reader(self._source)
                self._sink.shutdown(socket.SHUT_WR)
                self.ended = True
                return
            sent = self._send(_BUFFER[:count])
            if sent < count:
                self._rest = memoryview(bytes(_BUFFER[sent:count]))
                self._loop.remove_reader(self._source)
                self._loop.add_writer(self._sink, self._guarded, self._drain)
                return
            if count < PIECE_BYTES:
                return

    def _drain(self) -> None:
        assert self._rest is not None
        sent = self._send(self._rest)
        self._rest = self._rest[sent:]
        if not self._rest:
            self._rest = None
            self._loop.remove_writer(self._sink)
            self.begin()

    def _send(self, piece: memoryview) -> int:
        try:
            sent = self._sink.send(piece)
        except (BlockingIOError, InterruptedError):
            return 0
        self.count += sent
        return sent
