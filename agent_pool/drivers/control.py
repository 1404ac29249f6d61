"""The pool's end of a template's control socket: requests with ids, descriptors along, events in between."""

import asyncio
import json
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentruntime import launch, log

Message = dict[str, Any]
_HEAD = struct.Struct(">I")
_log = log.get("agent_pool.control")


class ControlClosed(Exception):
    """The process at the other end is gone."""


class ControlChannel:
    """One connection. `on_event` gets what comes unasked, `closed` is set when the other end is gone."""

    def __init__(self, connection: socket.socket, on_event: Callable[[Message], None]) -> None:
        self._socket = connection
        self._on_event = on_event
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._last_id = 0
        self._sending = asyncio.Lock()
        self.closed = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, path: Path, on_event: Callable[[Message], None]) -> "ControlChannel":
        """Connects to the socket at `path`.

        Raises:
            OSError: nobody listens there.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, str(path))
        except BaseException:
            connection.close()
            raise
        return cls(connection, on_event)

    async def request(self, message: Message, descriptors: list[int] | None = None) -> Message:
        """Sends a request and returns its answer.

        Raises:
            ControlClosed: the other end is gone.
        """
        if self.closed.is_set():
            raise ControlClosed
        self._last_id += 1
        ident = self._last_id
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[ident] = answer
        try:
            await self._send(launch.encode({**message, "id": ident}), descriptors or [])
            return await answer
        finally:
            self._waiting.pop(ident, None)

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def _send(self, frame: bytes, descriptors: list[int]) -> None:
        loop = asyncio.get_running_loop()
        async with self._sending:
            try:
                while True:
                    try:
                        sent = socket.send_fds(self._socket, [frame], descriptors)
                        break
                    except BlockingIOError:
                        await self._writable()
                if sent < len(frame):
                    await loop.sock_sendall(self._socket, frame[sent:])
            except OSError:
                raise ControlClosed from None

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_writer(self._socket, _wake, ready)
        try:
            await ready
        finally:
            loop.remove_writer(self._socket)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        buffer = b""
        try:
            while part := await loop.sock_recv(self._socket, 65536):
                buffer += part
                while len(buffer) >= _HEAD.size:
                    (length,) = _HEAD.unpack_from(buffer)
                    if length > launch.LONGEST_MESSAGE:
                        return
                    if len(buffer) < _HEAD.size + length:
                        break
                    message = json.loads(buffer[_HEAD.size : _HEAD.size + length])
                    buffer = buffer[_HEAD.size + length :]
                    self._take(message)
        except OSError:
            return  # a broken connection is a closed one
        except Exception as error:  # whatever nonsense of an agent's process leads to must not end more than this
            _log.warning("a template talks nonsense", error=repr(error))
        finally:
            self.closed.set()
            self._socket.close()
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(ControlClosed())

    def _take(self, message: Message) -> None:
        if "event" in message:
            self._on_event(message)
        elif (answer := self._waiting.get(message.get("id", 0))) and not answer.done():
            answer.set_result(message)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def listen(path: Path) -> socket.socket:
    """A listening Unix socket at `path`, in place of whatever was there."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(8)
    except BaseException:
        listener.close()
        raise
    return listener


async def accepted(listener: socket.socket, ended: asyncio.Event) -> socket.socket | None:
    """The next connection to a listener that does not block; None if there is none once `ended` is set.

    Whatever becomes of this, cancellation included, the loop does not watch the listener any more, and it may be
    closed: the next descriptor of its number would not be watched otherwise.
    """
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()
    ending = asyncio.create_task(ended.wait())
    ending.add_done_callback(lambda _: woken.set())
    loop.add_reader(listener, woken.set)
    try:
        while True:
            # Before the attempt: who has connected before the end is heard.
            over = ended.is_set()
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                if over:
                    return None
            else:
                connection.setblocking(False)
                return connection
            woken.clear()
            await woken.wait()
    finally:
        loop.remove_reader(listener)
        ending.cancel()
