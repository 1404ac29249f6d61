"""A receiver of Fluentd's forward protocol, after its specification: strict, and as ill-behaved as a test needs."""

import asyncio
import struct
from types import TracebackType
from typing import Any

import msgpack


class Receiver:
    """On a free port of this machine; `async with` it. It can go away and come back at the same one."""

    def __init__(self) -> None:
        # Of chunks that were acknowledged, and of those that were not.
        self.records: list[dict[str, Any]] = []
        self.unacknowledged: list[dict[str, Any]] = []
        self.tags: set[str] = set()
        self.port = 0
        self.acknowledges = True
        # Sent in place of an acknowledgement.
        self.answer: Any = None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def aggregator(self) -> str:
        return f"fluentd://127.0.0.1:{self.port}"

    @property
    def events(self) -> list[str]:
        return [record["event"] for record in self.records]

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._writers):
                writer.close()
            await self._server.wait_closed()
            self._server = None

    async def __aenter__(self) -> "Receiver":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        unpacker = msgpack.Unpacker()
        try:
            while data := await reader.read(65536):
                unpacker.feed(data)
                for message in unpacker:
                    self._take(message, writer)
        except ConnectionError:
            pass  # as far as it came
        finally:
            self._writers.discard(writer)
            writer.close()

    def _take(self, message: Any, writer: asyncio.StreamWriter) -> None:
        tag, entries, options = message
        assert isinstance(tag, str)
        assert options["size"] == len(entries) > 0
        records = []
        for time, record in entries:
            assert isinstance(time, msgpack.ExtType)
            assert time.code == 0
            seconds, nanoseconds = struct.unpack(">II", time.data)
            assert nanoseconds < 10**9
            records.append({**record, "at_s": seconds})
        self.tags.add(tag)
        if self.answer is not None:
            writer.write(msgpack.packb(self.answer))
        elif self.acknowledges:
            writer.write(msgpack.packb({"ack": options["chunk"]}))
            self.records += records
            return
        self.unacknowledged += records
