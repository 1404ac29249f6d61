"""Connects to a host that an agent may reach, by one of the addresses that its name stands for now."""

import asyncio
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from uapi_gateway.egress import addresses

# For each address, of which there may be several; TCP sends its first packet 3 times in this time (RFC 6298).
_CONNECT_TIMEOUT_S = 10.0
_ALL_TIMEOUT_S = 30.0
# Look-ups at a time: the standard library's wait for the name server in a thread.
_MOST_LOOK_UPS = 16
# A dead peer is noticed within two minutes; tcp(7).
_KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 4}


class Closed(Exception):
    """All addresses of the name are such as only an operator may open the way to; says which."""


class Unreachable(Exception):
    """Nobody answers there; says why."""


class Reaching:
    """Of one gateway."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_MOST_LOOK_UPS, thread_name_prefix="look-up")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def connect(self, host: str, port: int, *, anywhere: bool) -> socket.socket:
        """A connected socket that does not block.

        Args:
            host: a name or an address.
            port: TCP.
            anywhere: also to this machine and its surroundings.

        Raises:
            Closed: nothing was connected to.
            Unreachable: each address that is not closed was tried, for a bounded time.
        """
        try:
            async with asyncio.timeout(_ALL_TIMEOUT_S):
                return await self._connect(host, port, anywhere=anywhere)
        except TimeoutError:
            raise Unreachable("it does not answer in time") from None

    async def _connect(self, host: str, port: int, *, anywhere: bool) -> socket.socket:
        closed = failure = ""
        for family, address in await self._look_up(host, port):
            if not anywhere and (why := addresses.near(str(address[0]))):
                closed = f"{host} is {address[0]}, {why}"
                continue
            try:
                return await _connected(family, address)
            except OSError as error:
                # asyncio puts a sentence of its own in its place.
                failure = os.strerror(error.errno) if error.errno else "it does not answer in time"
        if closed and not failure:
            raise Closed(closed)
        raise Unreachable(failure or "it has no address")

    async def _look_up(self, host: str, port: int) -> list[tuple[int, Any]]:
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        except (OSError, UnicodeError) as error:  # the latter of a name that no name server could hold
            raise Unreachable(f"its name is not known: {getattr(error, 'strerror', None) or error}") from None
        return [(family, address) for family, _, _, _, address in found]


async def _connected(family: int, address: Any) -> socket.socket:
    """Raises OSError, TimeoutError among them."""
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection
