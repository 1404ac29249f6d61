"""A real pool in a runtime directory of its own, and agents built for a test."""

import asyncio
import contextlib
import io
import os
import signal
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import psutil
from agentruntime._proto.uapi.v1 import (
    agent_pool_pb2 as pb,
)
from agentruntime._proto.uapi.v1 import (
    agent_pool_pb2_grpc,
    image_service_pb2,
    image_service_pb2_grpc,
    text_generation_pb2,
    text_generation_pb2_grpc,
)
from agentruntime.home import Home
from grpc import aio

from agent_pool.cgroups import detect

AGENT = """\
from agentruntime import Agent
{before}

class Tester(Agent):
    {body}

    def generate(self, prompt, *, temperature, max_tokens):
        return prompt.upper()
"""


def project(
    name: str,
    *,
    before: str = "",
    body: str = "pass",
    code: str | None = None,
    manifest: str = "",
    files: Mapping[str, str] | None = None,
) -> bytes:
    """A tar of an agent project."""
    texts = {
        "agent.yaml": f"name: {name}\nversion: 1.0.0\nentrypoint: tester:Tester\n{manifest}",
        "tester.py": code if code is not None else AGENT.format(before=before, body=body),
        **(files or {}),
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, text in texts.items():
            member = tarfile.TarInfo(path)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()


class RunningPool:
    """`python -m agent_pool`, and its stubs."""

    def __init__(
        self, home: Home, environment: Mapping[str, str], python: Sequence[str] = ("-m", "agent_pool")
    ) -> None:
        self.home = home
        self._python = python
        self._environment = dict(environment)
        self.process: asyncio.subprocess.Process | None = None
        self._channel: aio.Channel | None = None

    async def start(self) -> "RunningPool":
        with (self.home.root.parent / "pool.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, *self._python, "--home", str(self.home.root), env=self._environment,
                stdout=log, stderr=log,
            )  # fmt: skip
        self._channel = aio.insecure_channel(
            f"unix:{self.home.pool_socket}",
            options=(("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 50)),
        )
        self.pool: agent_pool_pb2_grpc.AgentPoolAsyncStub = agent_pool_pb2_grpc.AgentPoolStub(self._channel)
        self.images: image_service_pb2_grpc.ImageServiceAsyncStub = image_service_pb2_grpc.ImageServiceStub(
            self._channel
        )
        await self.pool.GetNode(pb.GetNodeRequest(), timeout=20, wait_for_ready=True)
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def build(self, archive: bytes, reference: str = "") -> image_service_pb2.Image:
        async def parts() -> AsyncIterator[image_service_pb2.BuildImageRequest]:
            yield image_service_pb2.BuildImageRequest(spec=image_service_pb2.BuildSpec(reference=reference))
            for start in range(0, len(archive), 2**16):
                yield image_service_pb2.BuildImageRequest(chunk=archive[start : start + 2**16])

        image = None
        async for answer in self.images.BuildImage(parts(), timeout=60):
            if answer.HasField("image"):
                image = answer.image
        assert image is not None
        return image

    async def run(self, image: str, **fields: object) -> pb.Deployment:
        """Runs an image with fields of RunAgentRequest, or of its settings."""
        settings = {
            name: fields.pop(name) for name in list(fields) if name in pb.AgentSettings.DESCRIPTOR.fields_by_name
        }
        request = pb.RunAgentRequest(
            image=image,
            settings=pb.AgentSettings(**settings),  # type: ignore[arg-type]  # fields of the message
            **fields,  # type: ignore[arg-type]  # as above
        )
        # A first container of an agent makes its image.
        return (await self.pool.RunAgent(request, timeout=200)).deployment

    async def worker(self, worker_id: str) -> pb.Worker:
        return (await self.pool.GetWorker(pb.GetWorkerRequest(worker_id=worker_id), timeout=10)).worker

    async def until(self, worker_id: str, accept: Callable[[pb.Worker], bool], within_s: float = 15.0) -> pb.Worker:
        """The worker, as soon as `accept` says yes."""
        end = time.monotonic() + within_s
        while True:
            worker = await self.worker(worker_id)
            if accept(worker):
                return worker
            assert time.monotonic() < end, f"still {worker}"
            await asyncio.sleep(0.02)

    async def stop(self, name: str, grace_s: float = 5.0) -> None:
        request = pb.StopAgentRequest(name=name)
        request.grace_period.FromMilliseconds(int(grace_s * 1000))
        await self.pool.StopAgent(request, timeout=grace_s + 10)

    async def kill(self) -> None:
        """As kill -9 does."""
        await self.end(signal.SIGKILL)

    async def end(self, number: int = signal.SIGTERM) -> None:
        if self._channel is not None:
            await self._channel.close()
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)
            await asyncio.wait_for(self.process.wait(), 30)

    def leftovers(self) -> list[str]:
        """Processes, groups and sockets of this pool's home."""
        found = [f"process {pid}" for pid in processes(self.home)]
        hierarchy = detect.hierarchy(detect.here(), self.home.root)
        if hierarchy is not None:
            found += [f"group {name}" for name in hierarchy.names()]
        for part in ("w", "t"):
            directory = self.home.run / part
            found += [str(path) for path in directory.rglob("*")] if directory.is_dir() else []
        return found


def processes(home: Home) -> list[int]:
    """Everything that a pool of this home has started: it has one of its log files open."""
    found = []
    for process in psutil.process_iter():
        try:
            links = {str(path.readlink()) for path in Path(f"/proc/{process.pid}/fd").iterdir()}
        except OSError:
            continue
        if any(link.startswith(str(home.logs)) for link in links):
            found.append(process.pid)
    return found


def of_agent(home: Home, agent: str) -> list[str]:
    """Names of an agent's processes: "template a", "spare a", "a-01"."""
    names = []
    for pid in processes(home):
        with contextlib.suppress(FileNotFoundError):
            names.append(Path(f"/proc/{pid}/comm").read_text().strip())
    return sorted(name for name in names if name in (f"template {agent}", f"spare {agent}") or name[:-3] == agent)


async def generate(address: str, prompt: str, timeout_s: float = 10.0) -> str:
    """One call to a worker."""
    async with aio.insecure_channel(address) as channel:
        stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
        request = text_generation_pb2.GenerateTextRequest(prompt=prompt)
        response = await stub.GenerateText(request, timeout=timeout_s)
        return str(response.text)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
