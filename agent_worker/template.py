"""`python -m agent_worker.template --listen-fd N`: a warm process from which agents' processes are forked.

This is the base of `agentruntime.launch`: it has imported what every worker needs and opened nothing. On `load`
it forks an image template, which enters the agent's sandbox and imports the agent's code; on `fork` that one
forks a worker.
"""

import argparse
import base64
import gc
import os
import resource
import signal
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path

from agentruntime import launch, log
from agentruntime.launch import TemplateSpec

from agent_worker import sandbox
from agent_worker.control import Answer, ControlLoop, Request, exit_with, reply
from agent_worker.image_template import ImageTemplate

_log = log.get("agent_worker.template")

# A forked process that says half a sentence must not hold up its base.
_ANSWER_TIMEOUT_S = 2.0
_TEXTS = ("error", "traceback", "unenforceable", "unsafe", "note", "descriptors")


@dataclass
class _Load:
    """An image template that is being loaded."""

    request: Request
    spec: TemplateSpec
    descriptors: list[int]
    pid: int = 0
    channel: socket.socket = field(default_factory=socket.socket)
    degraded: list[str] = field(default_factory=list)
    # A process of this load was in the sandbox, so there is one, and the agent's code may have spoken since.
    entered: bool = False
    # Of a first template, thrown away because it was unsafe to fork.
    loaded: Answer | None = None


class Base:
    """Loads image templates."""

    def __init__(self, listener: socket.socket) -> None:
        self._loop = ControlLoop(listener, {"load": self._load})
        # A load was in the sandbox: this machine has one.
        self._isolates = False

    def run(self) -> None:
        self._loop.run()

    def _load(self, request: Request, descriptors: list[int]) -> None:
        spec = launch.template_spec(request["spec"])
        if len(descriptors) < 2:
            raise ValueError("load needs a listening socket and a log")
        load = _Load(request, spec, list(descriptors))
        descriptors.clear()  # they are the load's now
        self._start(load)

    def _start(self, load: _Load) -> None:
        load.channel, theirs = socket.socketpair()
        load.pid = self._loop.fork(load.spec.key, keep=[*load.descriptors, theirs.fileno()])
        if load.pid == 0:
            exit_with(lambda: ImageTemplate(load.spec, load.descriptors, theirs).run())
        theirs.close()
        self._loop.watch(load.channel, lambda: self._hear(load))

    def _hear(self, load: _Load) -> None:
        try:
            received = launch.receive(load.channel, timeout_s=_ANSWER_TIMEOUT_S)
        except (ValueError, OSError):
            received = None
        for descriptor in received[1] if received else ():
            os.close(descriptor)  # none is expected
        message = received[0] if received else _failed("it ended while it was loaded")
        if message.get("op") == "map":
            _write_id_map(load)
            return
        if message.get("op") == "entered":
            load.entered = self._isolates = True
            return
        message = _checked(message)
        self._loop.unwatch(load.channel)
        load.channel.close()
        if not message["ok"] or message["unsafe"]:
            self._loop.end(load.pid)
        if message["unenforceable"] and load.entered:
            # Believing it would run the agent as the pool.
            self._finish(load, _failed("it said that it cannot be isolated, after it was"))
        elif message["unenforceable"] and self._isolates:
            # An agent may have used up what the kernel has of it, to have the next one run without.
            self._finish(load, _failed(f"it could not be isolated, as others were: {message['unenforceable']}"))
        elif message["unenforceable"] and os.geteuid() == 0 and not load.spec.sandbox.may_be_root:
            self._finish(load, {**_failed("it could not be isolated"), "unenforceable": message["unenforceable"]})
        elif message["unenforceable"]:
            load.degraded.append(f"agents are not isolated from this machine: {message['unenforceable']}")
            load.spec = replace(load.spec, sandbox=replace(load.spec.sandbox, isolated=False))
            self._start(load)
        elif message["unsafe"]:
            load.loaded = message
            load.spec = replace(load.spec, import_in_worker=True)
            self._start(load)
        else:
            self._finish(load, message)

    def _finish(self, load: _Load, message: Answer) -> None:
        for descriptor in load.descriptors:
            os.close(descriptor)
        if message["ok"] and load.loaded is not None:
            message |= {key: load.loaded[key] for key in ("services", "descriptors")}
            message["note"] = f"imports after the fork, because {load.loaded['unsafe']}"
        names = (
            ("ok", "services", "descriptors", "note")
            if message["ok"]
            else ("ok", "error", "traceback", "unenforceable")
        )
        answer = {name: message[name] for name in names}
        if message["ok"]:
            answer |= {"pid": load.pid, "degraded": load.degraded}
        self._loop.send(reply(load.request, answer))


def _failed(error: str) -> Answer:
    return _checked({"ok": False, "error": error})


def _checked(message: Answer) -> Answer:
    """What a process says that may have run an agent's import: the fields that there are, each of its type."""
    services = message.get("services")
    answer: Answer = {
        "ok": message.get("ok") is True,
        "services": [_text(each) for each in services] if isinstance(services, list) else [],
        **{name: _text(message.get(name)) for name in _TEXTS},
    }
    try:
        base64.b64decode(answer["descriptors"], validate=True)
    except ValueError:
        return _failed("what it said of its services cannot be read")
    if len(launch.encode(answer)) > launch.LONGEST_MESSAGE // 2:  # ours adds to it
        return _failed("it said more than the pool reads")
    return answer


def _text(value: object) -> str:
    """A string that any message can hold, JSON's lone surrogates being none; "" for what is no string."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""


def _write_id_map(load: _Load) -> None:
    content = sandbox.id_map(load.spec.sandbox)
    try:
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{load.pid}/{name}").write_text(content)
        load.channel.send(b"+")
    except OSError as error:
        _log.warning("user ids cannot be mapped", error=str(error))
        load.channel.shutdown(socket.SHUT_WR)


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
