"""The stage of the conformance suite: one platform per driver, and an agent that does what it is sent.

Everything goes through the platform's public surface: the `agent` command, the SDK, the RPCs of the pool. The tests
know which driver is below only where they look from outside, at a process or at a container of the engine.
"""

import contextlib
import json
import os
import subprocess
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from agentruntime import Client
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime.home import Home

from tests.engine import Engine
from tests.integration.conftest import AGENT, TIMEOUT_S
from tests.waiting import until

NATIVE, CONTAINER = "native", "container"
MODES = {NATIVE: pb.RUNTIME_MODE_NATIVE, CONTAINER: pb.RUNTIME_MODE_CONTAINER}
# "# …" is code whose `answer` is called: a function in a thread; of a generator, what it yields are the pieces.
# Anything else is answered as it is.
_PROBER = """\
import asyncio
import inspect
import logging
import os
import signal

from agentruntime import Agent

VERSION = "{version}"


class Prober(Agent):
    async def start(self):
        if code := os.environ.get("AT_START"):
            await asyncio.to_thread(exec, code, {{}})

    async def generate(self, prompt, *, temperature, max_tokens):
        if not prompt.startswith("#"):
            yield prompt
            return
        scope = {{"VERSION": VERSION, "asyncio": asyncio, "logging": logging, "os": os, "signal": signal}}
        exec(prompt, scope)
        answer = scope["answer"]
        if inspect.isasyncgenfunction(answer):
            async for piece in answer():
                yield piece
        else:
            yield str(await asyncio.to_thread(answer))
"""
IMAGE = "prober:1.0.0"


@dataclass(frozen=True)
class Stage:
    """A running platform whose agents are of one driver."""

    driver: str
    home: Home
    client: Client
    # Where containers are; None for native.
    engine: Engine | None
    environment: dict[str, str]

    def agent(self, *arguments: str, code: int = 0, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs the `agent` command, which must exit with `code`."""
        done = subprocess.run(
            [str(AGENT), *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == code, f"agent {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def build(self, name: str, version: str, code: str | None = None, *flags: str) -> str:
        """Builds an agent, the prober if no code is given; the image's reference."""
        with tempfile.TemporaryDirectory(prefix="uapi-project-") as project:
            # A call that ends a worker is not to be tried again on the next one.
            manifest = f"name: {name}\nversion: {version}\nentrypoint: prober:Prober\nidempotent: false\n"
            Path(project, "agent.yaml").write_text(manifest)
            Path(project, "prober.py").write_text(code or _PROBER.format(version=version))
            self.agent("build", project, *flags)
        return f"{name}:{version}"

    @contextlib.contextmanager
    def running(self, name: str, image: str = IMAGE, replicas: int = 1, **settings: Any) -> Iterator[pb.Deployment]:
        """An agent of the test's own, stopped at the end; `settings` are fields of AgentSettings."""
        try:
            yield self.run(name, image, replicas, **settings)
        finally:
            request = pb.StopAgentRequest(name=name)
            request.grace_period.FromSeconds(1)
            with contextlib.suppress(Exception):
                self.client.pool.StopAgent(request)

    def run(self, name: str, image: str = IMAGE, replicas: int = 1, **settings: Any) -> pb.Deployment:
        request = pb.RunAgentRequest(
            image=image, agent=name, replicas=replicas, settings=pb.AgentSettings(**settings)
        )
        return self.client.pool.RunAgent(request, timeout=TIMEOUT_S).deployment

    def ask(self, name: str, code: str, timeout_s: float = 30) -> str:
        """What the prober makes of code."""
        return self.client.generate_text(name, "#\n" + textwrap.dedent(code), timeout_s=timeout_s).text

    def workers(self, name: str) -> list[pb.Worker]:
        """None of an agent that is not there, too."""
        workers = self.client.pool.ListWorkers(pb.ListWorkersRequest()).workers
        return [worker for worker in workers if worker.agent == name]

    def worker(self, worker_id: str) -> pb.Worker:
        return self.client.pool.GetWorker(pb.GetWorkerRequest(worker_id=worker_id)).worker

    def until(self, worker_id: str, accept: Callable[[pb.Worker], Any], timeout_s: float = 30) -> pb.Worker:
        """The worker, as soon as `accept` says yes."""
        found: list[pb.Worker] = []

        def accepted() -> bool:
            found[:] = [self.worker(worker_id)]
            return bool(accept(found[0]))

        try:
            until(accepted, timeout_s)
        except AssertionError:
            raise AssertionError(f"not within {timeout_s:g} s; it is {found}") from None
        return found[0]

    def identity(self, worker: pb.Worker) -> tuple[int, str]:
        """What stays the same for as long as a worker lives: its process, and its container if it has one."""
        assert bool(worker.container_id) is (self.driver == CONTAINER)
        return worker.pid, worker.container_id

    def exists(self, worker: pb.Worker) -> bool:
        """Whether a worker's process, or any trace of its container, is still there."""
        return psutil.pid_exists(worker.pid) or worker.container_id in self.containers() - {""}

    def containers(self) -> set[str]:
        """The ids of all containers that this platform's pool has made, in whatever state."""
        if self.engine is None:
            return set()
        with contextlib.closing(self.engine.client()) as client:
            found: list[Any] = client.api.containers(all=True, filters={"label": "dev.agentruntime.agent"})
        return {each["Id"] for each in found}

    def traces(self) -> set[str]:
        """What an agent may leave: containers, and sockets' directories."""
        return self.containers() | {str(path) for path in (self.home.run / "w").glob("*")}

    def processes(self) -> dict[str, int]:
        status = json.loads(self.agent("status", "--output", "json").stdout)
        return {process["name"]: process["pid"] for process in status["processes"]}


@contextlib.contextmanager
def stage(driver: str, engine: Engine | None) -> Iterator[Stage]:
    """Starts a platform, builds the prober, and ends all of it."""
    with tempfile.TemporaryDirectory(prefix="uapi-cf-") as directory:
        home = Home(Path(directory, "h"))
        environment = {
            **os.environ,
            "UAPI_HOME": str(home.root),
            "NO_COLOR": "1",
            "AGENT_RUNTIME_MODE": driver,
            "AGENT_POOL_HOUSEKEEPING_INTERVAL_S": "0.5",
            **(engine.environment if engine else {"DOCKER_HOST": f"unix://{directory}/none"}),
        }
        with Client(f"unix:{home.root}/run/gateway.sock", timeout_s=TIMEOUT_S) as client:
            made = Stage(driver, home, client, engine, environment)
            before = made.containers()
            try:
                made.agent("up", "--grpc-port", "0", "--http-port", "0")
                made.build("prober", "1.0.0")
                yield made
            finally:
                made.agent("down")
            until(lambda: made.containers() <= before, 30)
