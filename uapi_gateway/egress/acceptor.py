"""Accepts on the listening sockets of one worker, in a thread of its own.

The worker has those sockets, too: whether they block is a flag that it shares, and a connection that was there to be
accepted can be gone, because the worker has taken it. A hostile one can therefore have whoever accepts wait for ever.
It is this thread that waits then, and no other worker's connections.
"""

import contextlib
import errno
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

# Listening sockets of one worker; more have no effect.
MOST_WAYS = 256
# New connections of one worker. Each costs the gateway a millisecond or so.
MOST_A_SECOND = 200
# Between two looks whether to go on waiting for a slot.
_LOOK_S = 0.2
# With no descriptor left, until some connection has ended.
_FULL_S = 0.2
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Of one worker.

    Args:
        take: is given the name of a way and a connection on it, in this thread.
        slots: one is acquired for each connection that is taken; whoever ends the connection releases it.
    """

    def __init__(self, take: Callable[[str, socket.socket], None], slots: list[threading.Semaphore]) -> None:
        self._take = take
        self._slots = slots
        self._given: deque[tuple[str, int]] = deque()
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self._over = threading.Event()
        # Connections since then, by time.monotonic().
        self._second_s, self._taken = 0.0, 0
        self._listeners: dict[str, socket.socket] = {}
        self._thread = threading.Thread(target=self._run, name="egress", daemon=True)
        self._thread.start()

    def give(self, name: str, descriptor: int) -> None:
        """Accepts on one more socket, or on another in place of that of the same name.

        What is not a listening TCP socket is closed: also here, because even to close it may take time.
        """
        self._given.append((name, descriptor))
        self._rouse()

    def end(self) -> None:
        """Accepts no more, as soon as it can."""
        self._over.set()
        self._rouse()

    def force(self) -> None:
        """Ends a thread that waits in accept(2), and with it what the worker's sockets are good for."""
        for listener in list(self._listeners.values()):
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)

    def join(self, timeout_s: float) -> None:
        """Waits until it has ended. Blocks."""
        self._thread.join(timeout_s)

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def _rouse(self) -> None:
        with contextlib.suppress(OSError):  # roused already, or over
            self._wake.send(b"+")

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector, self._woken, self._wake:
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._over.is_set():
                for key, _ in selector.select():
                    if key.fileobj is self._woken:
                        self._hear(selector)
                    elif not self._over.is_set():
                        self._accept(selector, str(key.data))
            for listener in self._listeners.values():
                listener.close()
            for _, descriptor in self._given:
                os.close(descriptor)

    def _hear(self, selector: selectors.BaseSelector) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        while self._given:
            name, descriptor = self._given.popleft()
            self._drop(selector, name)
            listener = _listener(descriptor)
            if listener is None:
                continue
            if len(self._listeners) >= MOST_WAYS:
                listener.close()
                continue
            listener.setblocking(False)
            selector.register(listener, selectors.EVENT_READ, name)
            self._listeners[name] = listener

    def _drop(self, selector: selectors.BaseSelector, name: str) -> None:
        if listener := self._listeners.pop(name, None):
            selector.unregister(listener)
            listener.close()

    def _accept(self, selector: selectors.BaseSelector, name: str) -> None:
        if name not in self._listeners or not self._acquire():
            return
        try:
            connection, _ = self._listeners[name].accept()
        except OSError as error:
            # Most are of that one connection; accept(2).
            for slots in self._slots:
                slots.release()
            if error.errno in _FULL:
                self._over.wait(_FULL_S)
            elif error.errno == errno.EINVAL:
                self._drop(selector, name)  # the worker has shut it down
            return
        connection.setblocking(False)
        self._take(name, connection)
        self._pace()

    def _pace(self) -> None:
        """Waits for the next second, if the worker has had its connections of this one."""
        now_s = time.monotonic()
        if now_s - self._second_s >= 1:
            self._second_s, self._taken = now_s, 0
        self._taken += 1
        if self._taken >= MOST_A_SECOND:
            self._over.wait(self._second_s + 1 - now_s)

    def _acquire(self) -> bool:
        """A slot of each kind; False if it ends before there is one."""
        for count, slots in enumerate(self._slots):
            while not slots.acquire(timeout=_LOOK_S):
                if self._over.is_set():
                    for acquired in self._slots[:count]:
                        acquired.release()
                    return False
        return True


def _listener(descriptor: int) -> socket.socket | None:
    """A TCP socket that listens, and None for anything else, which is closed."""
    try:
        found = socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)
        return None
    try:
        if (
            found.family in (socket.AF_INET, socket.AF_INET6)
            and found.type == socket.SOCK_STREAM
            and found.proto == socket.IPPROTO_TCP
            and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        ):
            return found
    except OSError:
        pass  # no such option: no such socket
    found.close()
    return None
