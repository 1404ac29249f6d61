"""Drives templates the way the pool does, by `agentruntime.launch` alone, for the tests of this package."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentruntime import launch, sealed
from agentruntime.launch import SandboxSpec, TemplateSpec, WorkerSpec

UID_BASE = launch.UID_BASE + 60_000 * launch.UIDS_PER_AGENT


class Control:
    """A connection to a template."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(str(path))
        self.events: list[dict[str, Any]] = []

    def ask(self, message: dict[str, Any], descriptors: list[int] | None = None) -> dict[str, Any]:
        launch.send(self._socket, message, descriptors)
        while True:
            answer = self._receive()
            if "ok" in answer:
                return answer
            self.events.append(answer)

    def exit_of(self, name: str) -> int:
        """The wait status of a child, when it comes."""
        while True:
            for event in self.events:
                if event["name"] == name:
                    return int(event["status"])
            self.events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        received = launch.receive(self._socket)
        assert received is not None, "the template hung up"
        return received[0]

    def close(self) -> None:
        self._socket.close()


@dataclass
class Worker:
    spec: WorkerSpec
    pid: int
    channel: socket.socket
    log: Path
    address: str

    def event(self) -> dict[str, Any]:
        """The next thing the worker says to its pool; {} at the end of the stream."""
        line = b""
        while not line.endswith(b"\n"):
            part = self.channel.recv(1)
            if not part:
                return {}
            line += part
        event: dict[str, Any] = json.loads(line)
        return event

    def drain(self, grace_s: float = 5.0) -> None:
        self.channel.sendall(json.dumps({"op": "drain", "grace_s": grace_s}).encode() + b"\n")


@dataclass
class Template:
    control: Control
    spec: TemplateSpec
    answer: dict[str, Any]
    directory: Path
    workers: list[Worker] = field(default_factory=list)

    def spare(self, slot: int = 1) -> int:
        """The pid of a process that waits to become the worker of a slot."""
        answer = self.control.ask(launch.spec_message("spare", WorkerSpec("", self.spec.agent, 1, slot)))
        return int(answer["pid"])

    def fork(
        self, slot: int = 1, spare: int | None = None, secrets: Mapping[str, bytes] | None = None, **settings: Any
    ) -> Worker:
        secrets_fd = [sealed.seal(secrets)] if secrets else []
        spec = WorkerSpec(
            f"{self.spec.agent}-{slot:02d}", self.spec.agent, 1, slot, secrets=bool(secrets_fd), **settings
        )
        home = Path(self.spec.sandbox.workers_dir) / str(slot)
        home.mkdir(mode=0o700, exist_ok=True)
        if self.spec.sandbox.uid_base:
            os.chown(home, self.spec.sandbox.uid_base + slot, self.spec.sandbox.uid_base + slot)
        log = self.directory / f"{spec.worker_id}.log"
        log_fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        ours, theirs = socket.socketpair()
        ours.settimeout(30)
        request = launch.spec_message("fork", spec) | ({} if spare is None else {"spare": spare})
        answer = self.control.ask(request, [log_fd, theirs.fileno(), *secrets_fd])
        for descriptor in (log_fd, *secrets_fd):
            os.close(descriptor)
        theirs.close()
        if not answer["ok"]:
            ours.close()
            raise AssertionError(answer["error"])
        path = Path(self.spec.sandbox.workers_dir) / launch.socket_name(slot)
        worker = Worker(spec, answer["pid"], ours, log, f"unix:{path}")
        self.workers.append(worker)
        return worker


class Base:
    """A base template, and what it has loaded."""

    def __init__(self, directory: Path, python: Sequence[str]) -> None:
        self.directory = directory
        self.path = directory / "base.sock"
        listener = _listen(self.path)
        self.process = subprocess.Popen(
            [sys.executable, *python, "--listen-fd", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        listener.close()
        self.control = Control(self.path)
        self.templates: list[Template] = []

    def load(self, agent: str, bundle: Path, entrypoint: str, **settings: Any) -> Template:
        directory = self.directory / agent
        (directory / "w").mkdir(parents=True)
        log_fd = os.open(directory / "template.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        listener = _listen(directory / "t.sock")
        isolated = settings.pop("isolated", True)
        sandbox = SandboxSpec(
            isolated=isolated,
            system_calls=settings.pop("system_calls", "default" if isolated else "any"),
            may_be_root=settings.pop("may_be_root", False),
            host_network=settings.pop("host_network", False),
            uid_base=settings.pop("uid_base", UID_BASE if os.geteuid() == 0 else 0),
            workers_dir=str(directory / "w"),
            secrets=settings.pop("secrets", False),
            egress=settings.pop("egress", []),
        )
        spec = TemplateSpec(f"{agent}@1", agent, str(bundle), entrypoint, sandbox=sandbox, **settings)
        answer = self.control.ask(launch.spec_message("load", spec), [listener.fileno(), log_fd])
        listener.close()
        os.close(log_fd)
        control = Control(directory / "t.sock") if answer["ok"] else self.control
        template = Template(control, spec, answer, directory)
        self.templates.append(template)
        return template

    def end(self) -> None:
        self.control.close()
        for template in self.templates:
            template.control.close()
            for worker in template.workers:
                worker.channel.close()
                _kill(worker.pid)
            if template.answer.get("pid"):
                _kill(template.answer["pid"])
        self.process.kill()
        self.process.wait()


@contextmanager
def base(python: Sequence[str] = ("-m", "agent_worker.template")) -> Iterator[Base]:
    """A base template in a short directory of its own (a socket's path is bounded), ended with all it forked.

    Args:
        python: arguments for the interpreter, to run it in another way.
    """
    with tempfile.TemporaryDirectory(prefix="uapi-") as directory:
        running = Base(Path(directory), python)
        try:
            yield running
        finally:
            running.end()


def write_bundle(directory: Path, **files: str) -> Path:
    """An unpacked image with modules of the given names."""
    app = directory / "app"
    app.mkdir(parents=True)
    for name, text in files.items():
        (app / f"{name}.py").write_text(text)
    return directory


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
