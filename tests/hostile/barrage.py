"""Sends hostile inputs, so many at a time, and counts how their connections ended.

`python -m tests.hostile.barrage GRPC_PORT HTTP_PORT --seed 1 --count 1000 --lanes 32` prints them as JSON, by family.
A process of its own, so that its work delays nobody whose calls are measured.
"""

import argparse
import asyncio
import json
import socket
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator

from tests.hostile import frames
from tests.hostile.inputs import Input, inputs, pinning

# What is quiet for so long has said all.
_QUIET_S = 0.3
# Of one input, whatever happens.
_LONGEST_S = 15.0
_FIRST_WINDOW_BYTES = 2**16 - 1
_READ_BYTES = 2**16


class Peer:
    """The other side's windows, as its frames tell them."""

    def __init__(self, bodies: dict[int, bytes], *, ends: bool) -> None:
        self._left = {stream: memoryview(body) for stream, body in bodies.items()}
        self._ends = ends
        self._unread = b""
        self._first = _FIRST_WINDOW_BYTES
        self._windows = defaultdict[int, int](int)
        self._connection = _FIRST_WINDOW_BYTES

    def heard(self, data: bytes) -> None:
        self._unread += data
        while len(self._unread) >= (9 + (length := int.from_bytes(self._unread[:3], "big"))):
            kind, flags, stream = struct.unpack(">BBI", self._unread[3:9])
            payload, self._unread = self._unread[9 : 9 + length], self._unread[9 + length :]
            if kind == frames.SETTINGS and not flags:
                for key, value in struct.iter_unpack(">HI", payload):
                    self._first = value if key == frames.INITIAL_WINDOW else self._first
            elif kind == frames.WINDOW_UPDATE and stream:
                self._windows[stream] += int.from_bytes(payload, "big")
            elif kind == frames.WINDOW_UPDATE:
                self._connection += int.from_bytes(payload, "big")
            elif kind == frames.RST_STREAM or (kind == frames.HEADERS and flags & frames.END_STREAM):
                self._left.pop(stream, None)

    def next(self) -> Iterator[bytes]:
        """What may be sent now."""
        for stream, body in list(self._left.items()):
            at = 0
            while at < len(body):
                room = min(self._first + self._windows[stream], self._connection, frames.LARGEST_FRAME_BYTES)
                if room <= 0:
                    break
                piece = bytes(body[at : at + room])
                at += len(piece)
                self._windows[stream] -= len(piece)
                self._connection -= len(piece)
                last = self._ends and at == len(body)
                yield frames.frame(frames.DATA, frames.END_STREAM if last else 0, stream, piece)
            self._left[stream] = body[at:]
            if at == len(body):
                del self._left[stream]


async def send(each: Input, port: int) -> str:
    """Says all of an input; how it ended: "answered", "closed", "reset", "quiet" or "stuck"."""
    try:
        async with asyncio.timeout(_LONGEST_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                return await _converse(each, reader, writer)
            finally:
                if each.then == "reset":
                    # RST instead of FIN.
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
    except TimeoutError:
        return "stuck"
    except OSError:
        return "reset"


async def _converse(each: Input, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    writer.write(each.said)
    await writer.drain()
    peer = Peer(each.bodies, ends=each.ends)
    answered = False
    if each.then == "half":
        writer.write_eof()
    loop = asyncio.get_running_loop()
    over = loop.time() + each.held_s
    while each.then in ("read", "half") or loop.time() < over:
        try:
            async with asyncio.timeout(_QUIET_S):
                data = await reader.read(_READ_BYTES)
        except TimeoutError:
            if loop.time() >= over:
                return "answered" if answered else "quiet"
            continue
        if not data:
            return "closed"
        answered = True
        if each.bodies:
            peer.heard(data)
            for piece in peer.next():
                writer.write(piece)
            await writer.drain()
    return "answered" if answered else "quiet"


async def barrage(ports: dict[str, int], left: Iterator[Input], lanes: int) -> dict[str, Counter[str]]:
    """Sends all that are left, `lanes` at a time; how many ended how, by family."""
    ended: dict[str, Counter[str]] = defaultdict(Counter)

    async def lane() -> None:
        for each in left:
            ended[each.family][await send(each, ports[each.port])] += 1

    await asyncio.gather(*(lane() for _ in range(lanes)))
    return ended


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.barrage")
    parser.add_argument("grpc_port", type=int)
    parser.add_argument("http_port", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--lanes", type=int, default=32)
    parser.add_argument("--pinning", action="store_true", help="those that keep memory, instead of all kinds")
    given = parser.parse_args()
    left = pinning(given.count) if given.pinning else inputs(given.seed, given.count)
    ports = {"grpc": given.grpc_port, "http": given.http_port}
    print(json.dumps(asyncio.run(barrage(ports, left, given.lanes))))


if __name__ == "__main__":
    main()
