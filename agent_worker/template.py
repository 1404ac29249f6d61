"""`python -m agent_worker.template --listen-fd N`: a warm process from which agents' processes are forked.

This is the base of `agentruntime.launch`: it has imported what every worker needs and opened nothing. On `load`
it forks an image template, which enters the agent's sandbox and imports the agent's code; on `fork` that one
forks a worker. Everything here is single-threaded and synchronous, because only such a process can be forked
safely.
"""

import argparse
import base64
import contextlib
import gc
import os
import resource
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from agentruntime import errors, launch, log
from agentruntime.launch import TemplateSpec, WorkerSpec

from agent_worker import linux, loader, sandbox, worker

Request = dict[str, Any]
Answer = dict[str, Any]
Handler = Callable[[Request, list[int]], Answer | None]
_log = log.get("agent_worker.template")

# The environment that an agent's processes begin with; the rest of the pool's stays with the pool.
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONUNBUFFERED", "VIRTUAL_ENV")
# Libraries that start threads at import, so that a template would be unsafe to fork: one thread each.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# A forked process that says half a sentence must not hold up its base.
_ANSWER_TIMEOUT_S = 2.0


class Template:
    """The loop that a base and an image template share: requests from the pool, and children that end."""

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
            self.send(_reply(request, answer))

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
        self.send(_reply(request, {"ok": True}))
        self._running = False


@dataclass
class _Load:
    """An image template that is being loaded."""

    request: Request
    spec: TemplateSpec
    descriptors: list[int]
    pid: int = 0
    channel: socket.socket = field(default_factory=socket.socket)
    degraded: list[str] = field(default_factory=list)
    # Of a first template, thrown away because it was unsafe to fork.
    loaded: Answer | None = None


class Base:
    """Loads image templates."""

    def __init__(self, listener: socket.socket) -> None:
        self._template = Template(listener, {"load": self._load})

    def run(self) -> None:
        self._template.run()

    def _load(self, request: Request, descriptors: list[int]) -> None:
        spec = launch.template_spec(request["spec"])
        if len(descriptors) < 2:
            raise ValueError("load needs a listening socket and a log")
        load = _Load(request, spec, list(descriptors))
        descriptors.clear()  # they are the load's now
        self._start(load)

    def _start(self, load: _Load) -> None:
        load.channel, theirs = socket.socketpair()
        load.pid = self._template.fork(load.spec.key, keep=[*load.descriptors, theirs.fileno()])
        if load.pid == 0:
            _exit_with(lambda: ImageTemplate(load.spec, load.descriptors, theirs).run())
        theirs.close()
        self._template.watch(load.channel, lambda: self._hear(load))

    def _hear(self, load: _Load) -> None:
        try:
            received = launch.receive(load.channel, timeout_s=_ANSWER_TIMEOUT_S)
        except (ValueError, OSError):
            received = None
        for descriptor in received[1] if received else ():
            os.close(descriptor)  # none is expected
        message = received[0] if received else {"ok": False, "error": "it ended while it was loaded", "traceback": ""}
        if message.get("op") == "map":
            _write_id_map(load)
            return
        self._template.unwatch(load.channel)
        load.channel.close()
        if not message.get("ok") or message.get("unsafe"):
            self._template.end(load.pid)
        if message.get("unenforceable"):
            load.degraded.append(f"agents are not isolated from this machine: {message['unenforceable']}")
            load.spec = replace(load.spec, sandbox=replace(load.spec.sandbox, isolated=False))
            self._start(load)
        elif message.get("unsafe"):
            load.loaded = message
            load.spec = replace(load.spec, import_in_worker=True)
            self._start(load)
        else:
            self._finish(load, message)

    def _finish(self, load: _Load, message: Answer) -> None:
        for descriptor in load.descriptors:
            os.close(descriptor)
        if message.get("ok") and load.loaded is not None:
            message |= {key: load.loaded[key] for key in ("services", "descriptors")}
            message["note"] = f"imports after the fork, because {load.loaded['unsafe']}"
        # Last what this process knows itself: the message comes from one that has imported the agent.
        answer = {**message, "pid": load.pid, "degraded": load.degraded} if message.get("ok") else message
        self._template.send(_reply(load.request, answer))


class ImageTemplate:
    """Lives in an agent's sandbox with the agent's code imported, and forks its workers."""

    def __init__(self, spec: TemplateSpec, descriptors: list[int], base: socket.socket) -> None:
        listen_fd, log_fd, *cgroup_fds = descriptors
        _join(cgroup_fds)
        worker.write_to(log_fd)
        os.setsid()
        linux.name_process(f"template {spec.agent}")
        self._spec = spec
        self._base = base
        self._bundle = sandbox.BUNDLE if spec.sandbox.isolated else spec.bundle
        self._listener = socket.socket(fileno=listen_fd)
        self._loaded: loader.LoadedAgent | None = None
        self._spares: dict[int, socket.socket] = {}

    def run(self) -> None:
        answer = self._prepare()
        launch.send(self._base, answer)
        self._base.close()
        if not answer.get("ok") or answer.get("unsafe"):
            return
        gc.collect()
        gc.freeze()  # so that no collection in a worker touches, and so copies, the shared pages
        self._template = Template(self._listener, {"fork": self._fork, "spare": self._spare})
        self._template.run()

    def _prepare(self) -> Answer:
        spec = self._spec
        _begin_environment(spec)
        if spec.sandbox.isolated:
            try:
                sandbox.enter(spec.sandbox, spec.bundle, self._request_id_map)
            except sandbox.Unenforceable as error:
                return {"ok": False, "unenforceable": str(error)}
        app = Path(self._bundle, "app")
        os.chdir(app if app.is_dir() else "/")
        if spec.import_in_worker:
            return {"ok": True, "services": [], "descriptors": "", "note": "imports after the fork, as asked"}
        sockets_before = _open_sockets()
        log.configure(spec.log_level, agent=spec.agent, template=spec.key)
        try:
            loaded = loader.load(self._bundle, spec.entrypoint, spec.services)
        except errors.AgentError as error:
            return {"ok": False, "error": error.message, "traceback": ""}
        except BaseException as error:  # an agent's module may well call sys.exit()
            traceback.print_exc()
            report = f"{type(error).__name__}: {error}"
            return {"ok": False, "error": report, "traceback": "".join(traceback.format_exception(error))}
        answer = {
            "ok": True,
            "services": list(loaded.services),
            "descriptors": base64.b64encode(loaded.descriptors).decode(),
            "note": "",
        }
        if unsafe := _unsafe_to_fork(sockets_before):
            return {**answer, "unsafe": unsafe}
        self._loaded = loaded
        return answer

    def _request_id_map(self) -> None:
        launch.send(self._base, {"op": "map"})
        if not self._base.recv(1):
            raise OSError(0, "the base could not map user ids")

    def _spare(self, _request: Request, descriptors: list[int]) -> Answer:
        for gone in [pid for pid in self._spares if not self._template.has(pid)]:
            self._spares.pop(gone).close()
        ours, theirs = socket.socketpair()
        pid = self._template.fork("spare", keep=[*descriptors, theirs.fileno()])
        if pid == 0:
            _exit_with(lambda: self._stand_by(theirs, descriptors))
        theirs.close()
        self._spares[pid] = ours
        return {"ok": True, "pid": pid}

    def _stand_by(self, channel: socket.socket, cgroup_fds: list[int]) -> int:
        """A spare's life: until it is told which worker to be, or its template is gone."""
        _join(cgroup_fds)
        sandbox.separate(self._spec.sandbox)
        received = launch.receive(channel)
        if received is None:
            return 0
        channel.close()
        message, (log_fd, control_fd) = received
        return self._be_worker(launch.worker_spec(message["spec"]), log_fd, control_fd)

    def _fork(self, request: Request, descriptors: list[int]) -> Answer:
        spec = launch.worker_spec(request["spec"])
        if len(descriptors) < 2:
            raise ValueError("fork needs a log and a control socket")
        if "spare" in request:
            return self._employ(int(request["spare"]), request, spec, descriptors)
        log_fd, control_fd, *cgroup_fds = descriptors
        pid = self._template.fork(spec.worker_id, keep=descriptors)
        if pid == 0:

            def begin() -> int:
                _join(cgroup_fds)
                sandbox.separate(self._spec.sandbox)
                return self._be_worker(spec, log_fd, control_fd)

            _exit_with(begin)
        return {"ok": True, "pid": pid}

    def _employ(self, pid: int, request: Request, spec: WorkerSpec, descriptors: list[int]) -> Answer:
        with self._spares.pop(pid, socket.socket()) as channel:
            try:
                launch.send(channel, {"spec": request["spec"]}, descriptors)
            except OSError:
                return {"ok": False, "error": "that spare is gone", "traceback": ""}
        self._template.rename(pid, spec.worker_id)
        return {"ok": True, "pid": pid}

    def _be_worker(self, spec: WorkerSpec, log_fd: int, control_fd: int) -> int:
        return worker.run(spec, self._spec, self._loaded, self._bundle, log_fd=log_fd, control_fd=control_fd)


def _reply(request: Request, answer: Answer) -> Answer:
    return {**answer, "id": request["id"]} if "id" in request else answer


def _exit_with(main: Callable[[], int | None]) -> NoReturn:
    """Ends a forked child with what `main` returns, past whatever its parent had registered for its own exit."""
    status = worker.EXIT_FAILED
    try:
        status = main() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _join(cgroup_fds: list[int]) -> None:
    for descriptor in cgroup_fds:
        os.write(descriptor, b"0")  # the writer itself; cgroups(7)
        os.close(descriptor)


def _write_id_map(load: _Load) -> None:
    content = sandbox.id_map(load.spec.sandbox)
    try:
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{load.pid}/{name}").write_text(content)
        load.channel.send(b"+")
    except OSError as error:
        _log.warning("user ids cannot be mapped", error=str(error))
        load.channel.shutdown(socket.SHUT_WR)


def _begin_environment(spec: TemplateSpec) -> None:
    kept = {key: os.environ[key] for key in _KEPT_ENVIRONMENT if key in os.environ}
    os.environ.clear()
    os.environ.update(kept, HOME="/tmp", **dict.fromkeys(_ONE_THREAD, "1"))  # noqa: S108 — the sandbox's own /tmp
    worker.take_environment(spec.env)


def _close_all_but(keep: list[int]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = 2
    for descriptor in sorted(keep):
        os.closerange(last + 1, descriptor)
        last = descriptor
    os.closerange(last + 1, hard)


def _open_sockets() -> int:
    """How many descriptors of this process are sockets; proc(5)."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists the others is gone again
            count += str(descriptor.readlink()).startswith("socket:")
    return count


def _unsafe_to_fork(sockets_before: int) -> str:
    """Why a process that has imported an agent must not be forked, or ""."""
    processes = len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    if processes:
        return f"its import starts {processes} process{'es' if processes > 1 else ''}"
    threads = len(list(Path("/proc/self/task").iterdir())) - 1
    if threads:
        return f"its import starts {threads} thread{'s' if threads > 1 else ''}"
    sockets = _open_sockets() - sockets_before
    if sockets > 0:
        return f"its import opens {sockets} socket{'s' if sockets > 1 else ''}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m agent_worker.template", description=__doc__)
    parser.add_argument("--listen-fd", type=int, required=True, help="a listening Unix stream socket")
    listener = socket.socket(fileno=parser.parse_args().listen_fd)
    log.configure(process="template")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.collect()
    gc.freeze()
    Base(listener).run()


if __name__ == "__main__":
    main()
