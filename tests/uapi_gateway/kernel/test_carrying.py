"""What the gateway tells Envoy of a connection before the worker's first byte."""

import asyncio
import socket
import struct
from pathlib import Path

from uapi_gateway.kernel.carrying import Carrier, header
from uapi_gateway.kernel.peers import Peer

_PEER = Peer("my-agent", "my-agent-01", 3, 7, 8)


def test_the_header_says_whose_it_is() -> None:
    found = header(_PEER)
    # https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt, section 2.2: signature, version and command, kind,
    # length.
    assert found[:12] == bytes.fromhex("0d0a0d0a000d0a515549540a")
    assert struct.unpack("!BBH", found[12:16]) == (0x21, 0x11, len(found) - 16)
    rest, values = found[28:], {}
    while rest:
        kind, length = struct.unpack("!BH", rest[:3])
        values[kind], rest = rest[3 : 3 + length], rest[3 + length :]
    assert values == {0xE0: b"my-agent", 0xE1: b"my-agent-01", 0xE2: b"3"}
    # What is not known is not said.
    assert header(Peer("a", "", 0, 7, 8)).endswith(b"\xe0\x00\x01a\xe2\x00\x010")


async def test_bytes_go_both_ways_after_it(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = await reader.readexactly(len(header(_PEER)) + 5)
        assert received == header(_PEER) + b"hello"
        writer.write(b"world")
        writer.close()

    path = tmp_path / "calls.sock"
    async with await asyncio.start_unix_server(answer, path):
        worker, ours = socket.socketpair()
        worker.setblocking(False)
        ours.setblocking(False)
        carried = asyncio.create_task(Carrier(path).carry(ours, _PEER))
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(worker, b"hello")
        assert await loop.sock_recv(worker, 100) == b"world"
        worker.close()
        await carried


async def test_without_envoy_the_connection_ends(tmp_path: Path) -> None:
    worker, ours = socket.socketpair()
    with worker, ours:
        ours.setblocking(False)
        await Carrier(tmp_path / "none.sock").carry(ours, _PEER)
