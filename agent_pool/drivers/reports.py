"""What a worker says to its pool, over a socket pair: that it listens, or how it failed.

The agent's code runs in the same process, so nothing here is believed beyond that, and none of it may cost the
pool more than a moment: one `recv` a call, and an end to it all.
"""

import json
import socket
from collections.abc import Sequence
from typing import Any

# Before it listens, a worker has one line to say, with a traceback at most.
MOST_BYTES = 2**20


class Reports:
    """The pool's end. `close` it."""

    def __init__(self, connection: socket.socket | None) -> None:
        """Without a connection (of a worker that was taken over), nothing is ever heard."""
        if connection is not None:
            connection.setblocking(False)
        self.connection = connection
        self.hung_up = connection is None
        self.listening = False
        # How it failed: "error" and "traceback".
        self.failure: dict[str, str] = {}
        self._total_bytes = 0
        self._rest = b""

    @property
    def too_much(self) -> bool:
        """Whether it said more than a worker has to say; the rest is not read."""
        return self._total_bytes > MOST_BYTES

    def hear(self) -> bool:
        """Takes in one piece of what is there; False if there is nothing, or it hung up."""
        if self.connection is None or self.hung_up or self.too_much:
            return False
        try:
            part = self.connection.recv(2**16)
        except BlockingIOError:
            return False
        except OSError:
            part = b""
        if not part:
            self.hung_up = True
            return False
        self._total_bytes += len(part)
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            self._take(line)
        return True

    def hear_out(self) -> None:
        """Takes in all that is there, of a worker that has ended."""
        while self.hear():
            pass

    def ask_to_drain(self, grace_s: float) -> bool:
        """Whether it could be asked."""
        return self._tell({"op": "drain", "grace_s": grace_s})

    def hand_to_debugger(self, connection: socket.socket) -> bool:
        """Gives the worker a socket over which somebody debugs it; whether it could be given."""
        return self._tell({"op": "debug"}, [connection.fileno()])

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()

    def _tell(self, command: dict[str, Any], descriptors: Sequence[int] = ()) -> bool:
        if self.connection is None:
            return False
        try:
            # A line is shorter than what any socket takes at once.
            socket.send_fds(self.connection, [json.dumps(command).encode() + b"\n"], descriptors)
        except OSError:
            return False
        return True

    def _take(self, line: bytes) -> None:
        try:
            message: Any = json.loads(line)
        except (ValueError, RecursionError):
            return  # an agent that writes to descriptors not its own
        if not isinstance(message, dict):
            return
        if message.get("event") == "listening":
            self.listening = True
        elif message.get("event") == "failed":
            self.failure = {key: str(message.get(key, "")) for key in ("error", "traceback")}
