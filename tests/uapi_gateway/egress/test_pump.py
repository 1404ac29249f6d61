import asyncio
import hashlib
import os
import select
import socket
import struct
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.waiting import eventually
from uapi_gateway.egress.pump import PIECE_BYTES, Pump

_BYTES = 20 * 2**20


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for each in (one, other):
        each.setblocking(False)
    return one, other


class Line:
    """A pump, and who talks over it."""

    def __init__(self) -> None:
        self.client, inside = tcp_pair()
        outside, self.server = tcp_pair()
        self.pump = Pump(inside, outside)
        self.task = asyncio.create_task(self.pump.run())

    async def end(self) -> None:
        self.pump.end()
        await self.task
        self.client.close()
        self.server.close()


@pytest_asyncio.fixture
async def line() -> AsyncIterator[Line]:
    made = Line()
    yield made
    await made.end()


async def all_of(source: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    found = hashlib.sha256()
    while piece := await loop.sock_recv(source, 2**18):
        found.update(piece)
    return found.digest()


async def test_it_carries_both_ways_at_once(line: Line) -> None:
    loop = asyncio.get_running_loop()
    there, back = os.urandom(_BYTES), os.urandom(_BYTES)

    async def say(source: socket.socket, content: bytes) -> None:
        await loop.sock_sendall(source, content)
        source.shutdown(socket.SHUT_WR)

    _, _, heard, answered = await asyncio.gather(
        say(line.client, there), say(line.server, back), all_of(line.server), all_of(line.client)
    )
    assert heard == hashlib.sha256(there).digest()
    assert answered == hashlib.sha256(back).digest()
    await line.task
    assert (line.pump.bytes_sent, line.pump.bytes_received) == (_BYTES, _BYTES)


async def test_the_other_side_goes_on_after_one_has_ended(line: Line) -> None:
    loop = asyncio.get_running_loop()
    line.client.shutdown(socket.SHUT_WR)
    assert await loop.sock_recv(line.server, 1) == b""
    assert line.pump.half_closed
    await loop.sock_sendall(line.server, b"late")
    assert await loop.sock_recv(line.client, 10) == b"late"
    line.server.close()
    assert await loop.sock_recv(line.client, 10) == b""
    await line.task


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_reset_is_passed_on(line: Line, side: str) -> None:
    loop = asyncio.get_running_loop()
    breaking, other = (line.client, line.server) if side == "client" else (line.server, line.client)
    breaking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    breaking.close()
    with pytest.raises(ConnectionResetError):
        await loop.sock_recv(other, 1)
    await line.task


async def test_a_slow_reader_holds_up_the_sender_and_no_memory(line: Line) -> None:
    sent = 0

    def is_full() -> bool:
        nonlocal sent
        try:
            while True:
                sent += line.client.send(bytes(2**16))
        except BlockingIOError:
            return line.pump._sent._rest is not None and not _takes(line.client)

    await eventually(is_full)
    # What is neither with the sender, nor with the reader: at most a piece, and what the kernel has in its buffers.
    rest = line.pump._sent._rest
    assert rest is not None
    assert len(rest) <= PIECE_BYTES
    line.client.shutdown(socket.SHUT_WR)
    count, loop = 0, asyncio.get_running_loop()
    while piece := await loop.sock_recv(line.server, 2**18):
        count += len(piece)
    assert count == sent


def _takes(sender: socket.socket) -> bool:
    return bool(select.select([], [sender], [], 0)[1])


async def test_it_knows_since_when_nothing_moves(line: Line) -> None:
    began_s = line.pump.moved_at_s
    await asyncio.get_running_loop().sock_sendall(line.client, b"x")
    await eventually(lambda: line.pump.moved_at_s > began_s)


async def test_ended_from_here_both_sides_see_a_reset(line: Line) -> None:
    line.pump.end()
    await line.task
    for side in (line.client, line.server):
        with pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(side, 1)
