"""Carries a worker's connection to Envoy, which is told whose it is before the worker's first byte.

The way to say so is the PROXY protocol, version 2
(https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt): its header may hold values of our own. Only the gateway
reaches the listener that reads it. From there on a system call is a call like any other: Envoy routes it, bounds it,
repeats it, and no Python looks at it.
"""

import asyncio
import socket
import struct
from pathlib import Path

from uapi_gateway.egress.pump import Pump
from uapi_gateway.kernel.caller import TLV_AGENT, TLV_REVISION, TLV_WORKER
from uapi_gateway.kernel.peers import Peer

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
# Version 2, command PROXY; then TCP over IPv4, for Envoy knows no other kind that may have an address.
_PROXY_V2, _TCP4 = 0x21, 0x11
_ADDRESSES = socket.inet_aton("127.0.0.1") * 2 + struct.pack("!HH", 1, 1)


def header(peer: Peer) -> bytes:
    """Of a connection of that worker's."""
    said = {TLV_AGENT: peer.agent, TLV_WORKER: peer.worker_id, TLV_REVISION: str(peer.revision)}
    values = b"".join(
        struct.pack("!BH", kind, len(value)) + value for kind, text in said.items() if (value := text.encode())
    )
    content = _ADDRESSES + values
    return _SIGNATURE + struct.pack("!BBH", _PROXY_V2, _TCP4, len(content)) + content


class Carrier:
    """To one Envoy.

    Args:
        path: of its listener for system calls.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    async def carry(self, connection: socket.socket, peer: Peer) -> None:
        """Until one side ends. Where Envoy is away the worker sees its connection end, and tries again."""
        loop = asyncio.get_running_loop()
        envoy = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        envoy.setblocking(False)
        try:
            await loop.sock_connect(envoy, self._path)
            await loop.sock_sendall(envoy, header(peer))
        except OSError:
            envoy.close()
            return
        await Pump(connection, envoy).run()
