"""Lets a debugger in, in workers that run with `debug`: debugpy, from the first that attaches, and the way to it."""

import os
import socket
import threading
from typing import Any

from agentruntime import log

_CONNECT_TIMEOUT_S = 5.0
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
        for source, goal in ((connection, adapter), (adapter, connection)):
            _start(source, goal)

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


def _start(source: socket.socket, goal: socket.socket) -> None:
    carrier: Any = threading.Thread(target=_carry, args=(source, goal), name="debugger", daemon=True)
    # What debugpy marks its own threads with: it must not stop those that carry its words at a breakpoint.
    carrier.pydev_do_not_trace = carrier.is_pydev_daemon_thread = True
    carrier.start()


def _carry(source: socket.socket, goal: socket.socket) -> None:
    try:
        while piece := source.recv(65536):
            goal.sendall(piece)
    except OSError:
        pass  # the one at the other end hung up, which is how this ends
    finally:
        for end in (source, goal):
            _hang_up(end)


def _hang_up(end: socket.socket) -> None:
    # The other thread still waits for it: shut down, it wakes up, and the last to let go closes it.
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        end.close()
