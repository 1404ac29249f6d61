"""Envoy's administration, over its Unix socket: statistics, readiness, draining, log files."""

import asyncio
from pathlib import Path

from agentruntime.errors import Unavailable

_TIMEOUT_S = 5.0


class Admin:
    """A client of Envoy's admin endpoint, HTTP/1.1 with a connection per request."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def get(self, target: str) -> str:
        """The body of an answer to GET.

        Raises:
            Unavailable: Envoy does not answer, or not with 200.
        """
        return await self._ask("GET", target)

    async def post(self, target: str) -> str:
        """The body of an answer to POST.

        Raises:
            Unavailable: Envoy does not answer, or not with 200.
        """
        return await self._ask("POST", target)

    async def ready(self) -> bool:
        """Envoy has its configuration and listens."""
        try:
            return (await self.get("/ready")).strip() == "LIVE"
        except Unavailable:
            return False

    async def _ask(self, verb: str, target: str) -> str:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                head, body = await self._exchange(f"{verb} {target} HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n")
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            raise Unavailable(f"Envoy's admin socket does not answer: {error or type(error).__name__}") from error
        _version, status, *_ = [*head.split(" ", 2), ""]
        if status != "200":
            raise Unavailable(f"Envoy answers {status} to {target}")
        return body

    async def _exchange(self, request: str) -> tuple[str, str]:
        reader, writer = await asyncio.open_unix_connection(str(self._path), limit=2**26)
        try:
            writer.write(f"{request}content-length: 0\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            chunked = "transfer-encoding: chunked" in head.lower()
            body = await _chunks(reader) if chunked else await reader.read()
            return head, body.decode("utf-8", "replace")
        finally:
            writer.close()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A body in chunked transfer coding (RFC 9112, 7.1)."""
    body = bytearray()
    while size := int((await reader.readline()).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    return bytes(body)
