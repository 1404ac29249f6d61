"""The loop of a template: it answers the pool on its control socket, forks, and reaps.

Single-threaded and synchronous, because only such a process can be forked safely. `agentruntime.launch` has the
protocol.
"""

import contextlib
import os
import resource
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from agentruntime import launch, log

Request = dict[str, Any]
Answer = dict[str, Any]
Handler = Callable[[Request, list[int]], Answer | None]
_EXIT_FAILED = 1
_log = log.get("agent_worker.control")


class ControlLoop:
    """What a base and an image template share: requests from the pool, and children that end."""

    def __init__(self, listener: socket.socket, handlers: dict[str, Handler]) -> None:
        self._listener = listener
        self._handlers = {**handlers, "children": self._tell_children, "quit": self._quit}
        self._selector = selectors.DefaultSelector()
        self._connection: socket.socket | None = None
        self._children: dict[int, str] = {}
        self._running = True
        self._woken, wake = os.pipe()
        for descriptor in (self._woken, wake):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        listener.setblocking(False)
        self.watch(listener, self._accept)
        self.watch(self._woken, self._reap)

    def watch(self, source: Any, call: Callable[[], None]) -> None:
        """Calls `call` whenever `source` is readable."""
        self._selector.register(source, selectors.EVENT_READ, call)

    def unwatch(self, source: Any) -> None:
        self._selector.unregister(source)

    def run(self) -> None:
        while self._running:
            for key, _ in self._selector.select():
                key.data()

    def fork(self, name: str, keep: list[int]) -> int:
        """Forks; 0 in the child, which has standard streams and the descriptors in `keep`, and no other."""
        pid = os.fork()
        if pid:
            self._children[pid] = name
            return pid
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Objects first, so that none closes, later, a number that has come to mean something else.
        self._selector.close()
        self._listener.close()
        if self._connection:
            self._connection.close()
        _close_all_but(keep)
        return 0

    def has(self, pid: int) -> bool:
        """Whether a child of that pid has not been reaped."""
        return pid in self._children

    def rename(self, pid: int, name: str) -> None:
        """Gives a child that has not ended yet another name in events."""
        if pid in self._children:
            self._children[pid] = name

    def end(self, pid: int) -> None:
        """Kills a child whose end is no news to the pool."""
        if self._children.pop(pid, None) is not None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def send(self, message: Answer) -> None:
        """Answers the pool; if it is gone, it will ask again."""
        if self._connection is None:
            return
        try:
            launch.send(self._connection, message)
        except OSError:
            self._hang_up()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(True)
        self._hang_up()  # a new pool takes the place of the old one
        self._connection = connection
        self.watch(connection, self._serve)

    def _hang_up(self) -> None:
        if self._connection is not None:
            self.unwatch(self._connection)
            self._connection.close()
            self._connection = None

    def _serve(self) -> None:
        assert self._connection is not None
        try:
            received = launch.receive(self._connection)
        except (ValueError, OSError) as error:
            _log.warning("the control connection broke", error=str(error))
            received = None
        if received is None:
            self._hang_up()
            return
        request, descriptors = received
        handler = self._handlers.get(str(request.get("op")))
        try:
            if handler is None:
                raise ValueError(f"no such request: {request.get('op')}")
            answer = handler(request, descriptors)
        except (KeyError, TypeError, ValueError, OSError) as error:
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}", "traceback": ""}
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if answer is not None:
            self.send(reply(request, answer))

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if name := self._children.pop(pid, ""):  # not for a process that an agent's import left behind
                self.send({"event": "exit", "name": name, "pid": pid, "status": status})

    def _tell_children(self, _request: Request, _descriptors: list[int]) -> Answer:
        return {"ok": True, "children": {name: pid for pid, name in self._children.items()}}

    def _quit(self, request: Request, _descriptors: list[int]) -> None:
        self.send(reply(request, {"ok": True}))
        self._running = False


def reply(request: Request, answer: Answer) -> Answer:
    return {**answer, "id": request["id"]} if "id" in request else answer


def exit_with(main: Callable[[], int | None]) -> NoReturn:
    """Ends a forked child with what `main` returns, past whatever its parent had registered for its own exit."""
    status = _EXIT_FAILED
    try:
        status = main() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _close_all_but(keep: list[int]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = 2
    for descriptor in sorted(keep):
        os.closerange(last + 1, descriptor)
        last = descriptor
    os.closerange(last + 1, hard)
