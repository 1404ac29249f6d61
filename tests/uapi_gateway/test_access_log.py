"""Rotation of the access log, and the client of Envoy's admin socket that it needs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agentruntime.errors import Unavailable

from uapi_gateway.access_log import rotate
from uapi_gateway.admin import Admin


@contextlib.asynccontextmanager
async def admin(path: Path, reply: bytes) -> AsyncIterator[list[str]]:
    """Something that answers every request on a socket; the request lines that it got."""
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.decode().splitlines()[0])
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, path)
    async with server:
        yield asked


async def test_a_large_log_is_renamed_and_begun_anew(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    async with admin(tmp_path / "s", b"HTTP/1.1 200 OK\r\n\r\nOK\n") as asked:
        assert not await rotate(log, Admin(tmp_path / "s"), 10)
        log.write_text("short")
        assert not await rotate(log, Admin(tmp_path / "s"), 10)
        log.write_text("long enough")
        assert await rotate(log, Admin(tmp_path / "s"), 10)
    assert asked == ["POST /reopen_logs HTTP/1.1"]
    assert (tmp_path / "a.log.1").read_text() == "long enough"


async def test_admin_reads_whole_and_chunked_bodies(tmp_path: Path) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nLI\nV\r\n2;x=y\r\nE\n\r\n0\r\n\r\n"
    async with admin(tmp_path / "s", chunked):
        assert await Admin(tmp_path / "s").get("/x") == "LI\nVE\n"
    async with admin(tmp_path / "t", b"HTTP/1.1 200 OK\r\n\r\nLIVE\n"):
        assert await Admin(tmp_path / "t").ready()


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 503 no\r\n\r\n", b"junk\r\n\r\n", b"HTTP/1.1 200 OK\r\n"])
async def test_admin_that_does_not_answer_well_is_unavailable(tmp_path: Path, reply: bytes) -> None:
    async with admin(tmp_path / "s", reply):
        with pytest.raises(Unavailable):
            await Admin(tmp_path / "s").get("/x")
    assert not await Admin(tmp_path / "nobody").ready()
