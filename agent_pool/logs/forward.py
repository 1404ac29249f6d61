"""Fluentd's forward protocol, as a sender: chunks of records that count as sent once they are acknowledged.

https://github.com/fluent/fluentd/wiki/Forward-Protocol-Specification-v1: "Forward Mode", with the options `chunk` and
`size`. Without a shared key or TLS.
"""

import asyncio
import base64
import socket
import struct
import uuid
from collections.abc import Sequence
from typing import Any

import msgpack

Entry = tuple[float, dict[str, Any]]

_CONNECT_TIMEOUT_S = 5.0
_LONGEST_ANSWER_BYTES = 2**16
# A receiver that went away without a word is noticed after 60 seconds, also where nothing is sent; tcp(7).
_KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


class Link:
    """A connection to a receiver, made when it is needed."""

    def __init__(self, host: str, port: int, ack_timeout_s: float) -> None:
        self._host = host
        self._port = port
        self._ack_timeout_s = ack_timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, tag: str, entries: Sequence[Entry]) -> None:
        """Sends one chunk, and returns when the receiver has it for sure.

        Raises:
            OSError: the receiver cannot be reached, does not answer in time (TimeoutError), or answers something
                else. The connection is closed then; whether it has the chunk is not known.
        """
        chunk = base64.b64encode(uuid.uuid4().bytes).decode()
        message = _message(tag, entries, {"chunk": chunk, "size": len(entries)})
        try:
            reader, writer = await self._connected()
            writer.write(message)
            async with asyncio.timeout(self._ack_timeout_s):
                await writer.drain()
                answer = await _answer(reader)
        except TimeoutError:
            self.close()
            raise TimeoutError("it does not answer") from None
        except BaseException:
            self.close()
            raise
        if not isinstance(answer, dict) or answer.get("ack") != chunk:
            self.close()
            wants = "credentials" if isinstance(answer, list) and answer[:1] == ["HELO"] else "something else"
            raise ConnectionError(f"it asks for {wants}, instead of saying what it received")

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None and self._streams[0].at_eof():
            self.close()  # it hung up while nothing was sent
        if self._streams is None:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                self._streams = await asyncio.open_connection(self._host, self._port)
            connection = self._streams[1].get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEP_ALIVE:
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
        return self._streams


def _message(tag: str, entries: Sequence[Entry], options: dict[str, Any]) -> bytes:
    packer = msgpack.Packer(unicode_errors="replace")
    parts = [packer.pack_array_header(3), packer.pack(tag), packer.pack_array_header(len(entries))]
    for time_s, record in entries:
        try:
            parts.append(packer.pack([_event_time(time_s), record]))
        except (OverflowError, ValueError):
            # Integers of more than 64 bits, objects nested too deeply: JSON has them, MessagePack does not.
            packer.reset()
            parts.append(packer.pack([_event_time(time_s), _plain(record)]))
    return b"".join([*parts, packer.pack(options)])


def _plain(record: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in record.items() if isinstance(value, str | int | float)}


def _event_time(time_s: float) -> msgpack.ExtType:
    seconds = min(max(time_s, 0.0), 2**32 - 1)
    return msgpack.ExtType(0, struct.pack(">II", int(seconds), int(seconds % 1 * 1e9)))


async def _answer(reader: asyncio.StreamReader) -> Any:
    unpacker = msgpack.Unpacker(max_buffer_size=_LONGEST_ANSWER_BYTES)
    while True:
        data = await reader.read(4096)
        if not data:
            raise ConnectionError("it hung up")
        try:
            unpacker.feed(data)
            return next(unpacker)
        except StopIteration:
            continue
        except (ValueError, msgpack.UnpackException) as error:
            raise ConnectionError(f"it answers what is no message of the protocol: {error}") from None
