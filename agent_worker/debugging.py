"""Lets a debugger in, in workers that run with `debug`: debugpy, from the first that attaches, and the way to it."""

import os
import selectors
import socket
import threading
from contextlib import suppress
from typing import Any

from agentruntime import log

_CONNECT_TIMEOUT_S = 5.0
_PIECE_BYTES = 65536
_log = log.get("agent_worker.debugging")


class Debugger:
    """Of one worker; to be used in its main thread. Nothing of debugpy is imported before somebody attaches."""

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed
        self._address: tuple[str, int] | None = None

    def admit(self, connection: socket.socket) -> None:
        """Carries the Debug Adapter Protocol between a connected socket, which is this object's now, and debugpy.

        Blocks for about a second the first time. What goes wrong is logged, and closes the connection.
        """
        if not self._allowed:
            connection.close()
            return
        try:
            adapter = socket.create_connection(self._listen(), _CONNECT_TIMEOUT_S)
        except Exception as error:  # of debugpy: whatever it raises, the agent goes on
            _log.error("no debugger can be let in", exc_info=error)
            connection.close()
            return
        adapter.settimeout(None)
        connection.setblocking(True)
        _log.info("a debugger attaches")
        carrier: Any = threading.Thread(target=_carry, args=(connection, adapter), name="debugger", daemon=True)
        # What debugpy marks its own threads with: it must not stop at a breakpoint the one that carries its words.
        carrier.pydev_do_not_trace = carrier.is_pydev_daemon_thread = True
        carrier.start()

    def _listen(self) -> tuple[str, int]:
        """Where debugpy's adapter, a process of its own, listens: on this worker's own loopback."""
        if self._address is None:
            # Else it warns that breakpoints in the standard library's frozen modules may be missed.
            os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
            import debugpy  # noqa: PLC0415, T100 — nothing of it may be in a worker that nobody debugs

            # Processes that the agent starts could not be reached from outside.
            debugpy.configure(subProcess=False)
            self._address = debugpy.listen(("127.0.0.1", 0))  # noqa: T100 — what this module is for
        return self._address


def _carry(debugger: socket.socket, adapter: socket.socket) -> None:
    """Until one of them hangs up."""
    with debugger, adapter, selectors.DefaultSelector() as selector, suppress(OSError):
        for source, goal in ((debugger, adapter), (adapter, debugger)):
            selector.register(source, selectors.EVENT_READ, (source, goal))
        while True:
            for key, _ in selector.select():
                source, goal = key.data
                piece = source.recv(_PIECE_BYTES)
                if not piece:
                    return
                goal.sendall(piece)
