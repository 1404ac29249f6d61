"""A worker's life after the fork: get ready, take up what the pool handed over, serve, drain, end."""

import asyncio
import faulthandler
import json
import os
import random
import signal
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from agentruntime import calls, errors, log
from agentruntime.launch import MOST_DESCRIPTORS, TemplateSpec, WorkerSpec, socket_name

from agent_worker import egress, linux, loader, output, sandbox, secret_files
from agent_worker.debugging import Debugger
from agent_worker.lag import LagSelector
from agent_worker.loader import LoadedAgent
from agent_worker.server import WorkerServer

_EXIT_FAILED = 1
_log = log.get("agent_worker")


class PoolChannel:
    """This worker's end of the socket pair that it shares with the pool; a dead pool is not its concern."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._received = b""
        self._descriptors: list[int] = []

    def tell(self, event: str, **fields: str) -> None:
        """Sends one event; if nobody listens, it is lost."""
        line = json.dumps({"event": event, **fields}).encode() + b"\n"
        self._socket.setblocking(True)
        with suppress(OSError):
            self._socket.sendall(line)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def commands(self) -> list[dict[str, object]] | None:
        """What has come since the last time, or None once the pool is gone."""
        try:
            part, descriptors, _, _ = socket.recv_fds(self._socket, 65536, MOST_DESCRIPTORS)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not part:
            return None
        self._descriptors += descriptors
        *lines, self._received = (self._received + part).split(b"\n")
        return [json.loads(line) for line in lines]

    def connection(self) -> socket.socket:
        """The next of the sockets that came with commands."""
        return socket.socket(fileno=self._descriptors.pop(0))


@dataclass(frozen=True)
class Readied:
    """A process that any worker of its revision could become; it has run none of the agent's code since the fork."""

    runner: asyncio.Runner
    server: WorkerServer
    # Where it will serve, as gRPC writes it.
    address: str
    # To be handed to the gateway.
    ways_out: Sequence[egress.Opened]

    @classmethod
    def of(cls, spec: WorkerSpec, address: str, ways_out: Sequence[egress.Opened] = ()) -> "Readied":
        """In a process that is its worker's own already."""
        lag = LagSelector()
        runner = asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(lag))
        return cls(runner, runner.run(_make_server(spec, lag)), address, ways_out)


def get_ready(spec: WorkerSpec, template: TemplateSpec) -> Readied:
    """Makes this freshly forked process what a worker is made of: an own uid, an event loop, grpc's core.

    In this order: to listen for ways out takes capabilities; grpc starts threads, and each thread has capabilities of
    its own.

    Args:
        spec: of the worker; which one it is (its id and environment) does not matter yet.
        template: what its image template was loaded from.
    """
    os.setsid()
    entries = sandbox.ways_out(template.sandbox)
    ways_out = egress.open_ways(entries) if entries else ()
    sandbox.become_worker(template.sandbox, spec.slot)
    return Readied.of(spec, f"unix:{sandbox.workers_dir(template.sandbox) / socket_name(spec.slot)}", ways_out)


async def _make_server(spec: WorkerSpec, lag: LagSelector) -> WorkerServer:
    return WorkerServer(spec, lag)


def run(
    readied: Readied,
    spec: WorkerSpec,
    template: TemplateSpec,
    loaded: LoadedAgent | None,
    *,
    bundle: str,
    channel: PoolChannel,
    secrets_fd: int | None = None,
) -> int:
    """Runs the worker until it ends; returns its exit status.

    Args:
        readied: this process; it writes to the worker's log already.
        spec: what the pool asks of this worker.
        template: what its image template was loaded from.
        loaded: the agent, if the template has imported it; None to import it here.
        bundle: where this process sees the unpacked image.
        channel: to the pool.
        secrets_fd: what the pool handed over of secrets.
    """
    linux.name_process(spec.worker_id)
    # Where a signal such as SIGSEGV ends it, its log says in which line of the agent's code.
    faulthandler.enable(2, all_threads=False)
    calls.attach(sandbox.system_calls(template.sandbox))
    take_environment({**template.env, **spec.env})
    _reseed()
    if spec.log_format == "json":
        output.wrap(worker_id=spec.worker_id, agent=spec.agent)
    log.configure(spec.log_level, worker_id=spec.worker_id, agent=spec.agent, revision=spec.revision)
    if readied.ways_out:
        egress.keep_handed_over(readied.ways_out)
    stage = "secrets"
    try:
        if secrets_fd is not None:
            secret_files.take(secrets_fd, sandbox.secrets_dir(template.sandbox, spec.slot))
        stage = "import"
        if loaded is None:
            loaded = loader.load(bundle, template.entrypoint, template.services)
        stage = "start"
        # Never closed: that would wait for threads in which the agent hangs, and the process ends anyway.
        return readied.runner.run(_serve(readied, spec, loaded, channel, sandbox.event_log(template.sandbox)))
    except BaseException as error:  # also sys.exit() of a task that the agent has started
        report = error.message if isinstance(error, errors.AgentError) else f"{type(error).__name__}: {error}"
        _log.error("worker failed", stage=stage, error=report)
        traceback.print_exc()
        channel.tell("failed", stage=stage, error=report, traceback=traceback.format_exc())
        return _EXIT_FAILED
    finally:
        output.finish()


def write_to(log_fd: int) -> None:
    """Sends what this process prints to its log."""
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)
    sys.stdout, sys.stderr = output.lines(1), output.lines(2)


def take_environment(wanted: Mapping[str, str]) -> None:
    """Sets environment variables; those that would change where Python loads code from are not honoured."""
    os.environ.update({key: value for key, value in wanted.items() if not key.startswith(("PYTHON", "LD_"))})


def _reseed() -> None:
    """Gives each worker random numbers of its own; the fork copied the generators' state."""
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()


async def _serve(
    readied: Readied, spec: WorkerSpec, loaded: LoadedAgent, channel: PoolChannel, event_log: str
) -> int:
    server = readied.server
    loop = asyncio.get_running_loop()
    drain: asyncio.Future[float] = loop.create_future()
    grace_over = asyncio.Event()
    terminated = False
    debugger = Debugger(allowed=spec.debug)
    serves = False

    def begin_drain(grace_s: float) -> None:
        if not drain.done():
            drain.set_result(grace_s)
        elif not grace_s:
            grace_over.set()  # whoever stops it now gives it no more time

    def hear() -> None:
        commands = channel.commands()
        if commands is None:
            loop.remove_reader(channel.fileno())
            if not serves:
                begin_drain(0.0)  # the pool went away, or gave up, before it knew this worker
        for command in commands or ():
            if command.get("op") == "drain":
                begin_drain(float(str(command.get("grace_s", spec.stop_grace_s))))
            elif command.get("op") == "debug":
                debugger.admit(channel.connection())

    def terminate() -> None:
        nonlocal terminated
        if terminated:
            # Again: a pool that has taken this worker over has no other way to say that the grace is over. The first
            # time it cannot know whether the worker drains already.
            grace_over.set()
        terminated = True
        begin_drain(spec.stop_grace_s)

    loop.add_signal_handler(signal.SIGTERM, terminate)
    loop.add_reader(channel.fileno(), hear)
    starts = server.start(loaded, readied.address, spec.worker_id, event_log)
    starting: asyncio.Future[Any] = asyncio.ensure_future(starts)
    await asyncio.wait(cast(list[asyncio.Future[Any]], [starting, drain]), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        return 0  # stopped before it was ready
    starting.result()
    serves = True
    channel.tell("listening")
    _log.info("worker serves", services=loaded.services)
    grace_s = await drain
    _log.info("worker drains", grace_s=grace_s)
    try:
        await server.drain(grace_s, grace_over)
    except Exception as error:  # the worker ends as it was asked to, whatever the agent's stop() does
        _log.error("the agent's stop() failed", exc_info=error)
    _log.info("worker ended")
    return 0
