"""A worker's ways out: it listens for each in its own network, and hands the sockets to the gateway.

It is the gateway that takes connections on them; nothing runs here for one. See `agentruntime.egress`.
"""

import _thread
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentruntime import egress
from agentruntime.launch import KERNEL_DIR

from agent_worker import linux

# The gateway's socket, as a worker sees it.
GATEWAY = Path(KERNEL_DIR, egress.SOCKET_NAME)
# Connections that wait while the gateway is away; the kernel's default bound of it (net.core.somaxconn, tcp(7)).
_BACKLOG = 4096
# linux/in6.h: bind to what is no address of this host yet.
_IPV6_FREEBIND = 78
# Between two tries to reach the gateway. It is away for a second or so when it is restarted.
_FIRST_DELAY_S = 0.02
_LONGEST_DELAY_S = 1.0


@dataclass(frozen=True)
class Opened:
    """A way out with the socket that listens for it."""

    way: egress.Way
    listener: socket.socket


def open_ways(entries: Sequence[str]) -> list[Opened]:
    """Listens for each of the entries of `permissions.egress`, in this process' own network.

    It takes the capabilities that a process has in a network namespace of its own user namespace, for ports below
    1024 and for hosts that are addresses. What cannot be had is said on standard error: to connect there is refused.
    """
    opened = []
    for number, way in enumerate(egress.ways(entries)):
        try:
            if way.is_literal:
                linux.add_loopback_address(way.address, number)
            listener = _listen(way)
        except OSError as error:
            print(f"there is no way out to {way.entry}: {error.strerror}", file=sys.stderr)
        else:
            opened.append(Opened(way, listener))
    return opened


def keep_handed_over(opened: Sequence[Opened], gateway: Path = GATEWAY) -> None:
    """Hands the sockets over, in a thread, and again whenever the gateway was away.

    A thread, so that it waits for nothing that the agent does: not for an import, nor for a blocked event loop.

    Args:
        opened: at least one.
        gateway: its socket.
    """
    # Without waiting until it runs, as threading.Thread does: on a busy machine that takes milliseconds of a start.
    _thread.start_new_thread(_keep, (opened, gateway))


def _listen(way: egress.Way) -> socket.socket:
    family = socket.AF_INET6 if ":" in way.address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            # The kernel takes a moment to look whether another host has that address, also here; ipv6(7).
            listener.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        listener.bind((way.address, way.port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _keep(opened: Sequence[Opened], gateway: Path) -> None:
    delay_s = _FIRST_DELAY_S
    while True:
        began_s = time.monotonic()
        with suppress(OSError):  # it is away; connections wait in the backlog
            _hand_over(opened, gateway)
        if time.monotonic() - began_s > _LONGEST_DELAY_S:
            delay_s = _FIRST_DELAY_S
        time.sleep(delay_s)
        delay_s = min(2 * delay_s, _LONGEST_DELAY_S)


def _hand_over(opened: Sequence[Opened], gateway: Path) -> None:
    """Returns, or raises OSError, when the gateway lets go."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.connect(str(gateway))
        for each in opened:
            socket.send_fds(channel, [each.way.entry.encode()], [each.listener.fileno()])
        channel.recv(1)
