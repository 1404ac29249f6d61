"""An image template: lives in an agent's sandbox with the agent's code imported, and forks its workers."""

import base64
import contextlib
import gc
import os
import socket
import traceback
from pathlib import Path

from agentruntime import errors, launch, log
from agentruntime.launch import TemplateSpec, WorkerSpec

from agent_worker import linux, loader, sandbox, worker
from agent_worker.control import Answer, ControlLoop, Request, exit_with

# The environment that an agent's processes begin with; the rest of the pool's stays with the pool.
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONUNBUFFERED", "VIRTUAL_ENV")
# Libraries that start threads at import, so that a template would be unsafe to fork: one thread each.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class ImageTemplate:
    """One of them, from the fork on."""

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
        self._loop = ControlLoop(self._listener, {"fork": self._fork, "spare": self._spare})
        self._loop.run()

    def _prepare(self) -> Answer:
        spec = self._spec
        _begin_environment(spec)
        if spec.sandbox.isolated:
            try:
                sandbox.enter(spec.sandbox, spec.bundle, self._request_id_map)
            except sandbox.Unenforceable as error:
                return {"ok": False, "unenforceable": str(error)}
            # Before any code of the agent's: what this process says from here on may be the agent's word.
            launch.send(self._base, {"op": "entered"})
        sandbox.confine(spec.sandbox)
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

    def _spare(self, request: Request, descriptors: list[int]) -> Answer:
        spec = launch.worker_spec(request["spec"])
        for gone in [pid for pid in self._spares if not self._loop.has(pid)]:
            self._spares.pop(gone).close()
        ours, theirs = socket.socketpair()
        pid = self._loop.fork("spare", keep=[*descriptors, theirs.fileno()])
        if pid == 0:
            exit_with(lambda: self._stand_by(spec, theirs, descriptors))
        theirs.close()
        self._spares[pid] = ours
        return {"ok": True, "pid": pid}

    def _stand_by(self, spec: WorkerSpec, channel: socket.socket, cgroup_fds: list[int]) -> int:
        """A spare's life: until it is told which worker to be, or its template is gone."""
        _join(cgroup_fds)
        sandbox.separate(self._spec.sandbox, spec.slot)
        linux.name_process(f"spare {spec.agent}")
        readied = worker.get_ready(spec, self._spec)
        received = launch.receive(channel)
        if received is None:
            return 0
        channel.close()
        message, (log_fd, control_fd, *secrets_fd) = received
        worker.write_to(log_fd)
        return self._be_worker(readied, launch.worker_spec(message["spec"]), control_fd, secrets_fd)

    def _fork(self, request: Request, descriptors: list[int]) -> Answer:
        spec = launch.worker_spec(request["spec"])
        if len(descriptors) < 2 + spec.secrets:
            raise ValueError("fork needs a log, a control socket, and the secrets if there are any")
        if "spare" in request:
            return self._employ(int(request["spare"]), request, spec, descriptors)
        log_fd, control_fd, *others = descriptors
        secrets_fd, cgroup_fds = others[: spec.secrets], others[spec.secrets :]
        pid = self._loop.fork(spec.worker_id, keep=descriptors)
        if pid == 0:

            def begin() -> int:
                _join(cgroup_fds)
                worker.write_to(log_fd)
                sandbox.separate(self._spec.sandbox, spec.slot)
                return self._be_worker(worker.get_ready(spec, self._spec), spec, control_fd, secrets_fd)

            exit_with(begin)
        return {"ok": True, "pid": pid}

    def _employ(self, pid: int, request: Request, spec: WorkerSpec, descriptors: list[int]) -> Answer:
        with self._spares.pop(pid, socket.socket()) as channel:
            try:
                launch.send(channel, {"spec": request["spec"]}, descriptors)
            except OSError:
                return {"ok": False, "error": "that spare is gone", "traceback": ""}
        self._loop.rename(pid, spec.worker_id)
        return {"ok": True, "pid": pid}

    def _be_worker(self, readied: worker.Readied, spec: WorkerSpec, control_fd: int, secrets_fd: list[int]) -> int:
        return worker.run(
            readied,
            spec,
            self._spec,
            self._loaded,
            bundle=self._bundle,
            channel=worker.PoolChannel(control_fd),
            secrets_fd=secrets_fd[0] if secrets_fd else None,
        )


def _join(cgroup_fds: list[int]) -> None:
    for descriptor in cgroup_fds:
        os.write(descriptor, b"0")  # the writer itself; cgroups(7)
        os.close(descriptor)


def _begin_environment(spec: TemplateSpec) -> None:
    kept = {key: os.environ[key] for key in _KEPT_ENVIRONMENT if key in os.environ}
    os.environ.clear()
    os.environ.update(kept, HOME="/tmp", **dict.fromkeys(_ONE_THREAD, "1"))  # noqa: S108 — the sandbox's own /tmp
    worker.take_environment(spec.env)


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
