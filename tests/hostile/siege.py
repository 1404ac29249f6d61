"""A platform under hostile inputs: who is called meanwhile, how long it takes, and what memory it costs."""

import asyncio
import json
import os
import statistics
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from agentruntime._proto.uapi.v1 import agent_registry_pb2, agent_registry_pb2_grpc, text_generation_pb2
from agentruntime._proto.uapi.v1 import text_generation_pb2_grpc as text_grpc
from grpc import aio

ROOT = Path(__file__).parents[2]
_AGENT = (("x-uapi-agent", "echo"),)
_MIB = 2**20
_TIMEOUT_S = 20.0


@dataclass
class Traffic:
    """Calls that were made as they should be."""

    latencies_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    pages: int = 0
    streamed: int = 0

    def millis(self, share: float) -> float:
        return 1000 * statistics.quantiles(self.latencies_s, n=1000)[round(share * 1000) - 1]


@dataclass
class Watched:
    """The most memory that processes had, and whether they are the same as before."""

    pids: dict[str, int]
    before_bytes: dict[str, int] = field(default_factory=dict)
    most_bytes: dict[str, int] = field(default_factory=dict)

    def look(self) -> None:
        for name, pid in self.pids.items():
            resident = psutil.Process(pid).memory_info().rss
            self.before_bytes.setdefault(name, resident)
            self.most_bytes[name] = max(self.most_bytes.get(name, 0), resident)

    def lost(self) -> list[str]:
        return [name for name, pid in self.pids.items() if not psutil.pid_exists(pid)]


@dataclass(frozen=True)
class Siege:
    """How it went."""

    ended: dict[str, Counter[str]]
    calm: Traffic
    besieged: Traffic
    memory: Watched
    lost: list[str]
    seconds: float


async def besiege(grpc_port: int, http_port: int, pids: dict[str, int], *options: str) -> Siege:
    """Calls the agent "echo" without a break, first in peace, then while hostile inputs come in.

    Args:
        grpc_port: of the gateway, where anybody may call.
        http_port: of its pages.
        pids: of what must live, by name.
        options: of the barrage.
    """
    memory = Watched(pids)
    memory.look()
    calm = await _traffic(grpc_port, http_port, memory, asyncio.sleep(3))
    argv = [sys.executable, "-m", "tests.hostile.barrage", str(grpc_port), str(http_port)]
    process = await asyncio.create_subprocess_exec(
        *argv, *options, cwd=ROOT, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    started = time.monotonic()
    try:
        waiting = asyncio.ensure_future(process.communicate())
        besieged = await _traffic(grpc_port, http_port, memory, waiting)
        output, _ = waiting.result()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    ended = {family: Counter(counts) for family, counts in json.loads(output).items()}
    return Siege(ended, calm, besieged, memory, memory.lost(), time.monotonic() - started)


async def _traffic(grpc_port: int, http_port: int, memory: Watched, until: Awaitable[object]) -> Traffic:
    traffic = Traffic()
    target = f"127.0.0.1:{grpc_port}"
    async with aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        loops = [
            asyncio.create_task(each)
            for each in (
                *(_call(channel, traffic) for _ in range(4)),
                _stream(channel, traffic),
                _browse(http_port, traffic),
                _look(memory),
            )
        ]
        try:
            await until
        finally:
            for task in loops:
                task.cancel()
            ended = await asyncio.gather(*loops, return_exceptions=True)
    traffic.failures.extend(repr(each) for each in ended if not isinstance(each, asyncio.CancelledError))
    return traffic


async def _call(channel: aio.Channel, traffic: Traffic) -> None:
    stub = text_grpc.TextGenerationServiceStub(channel)
    registry = agent_registry_pb2_grpc.AgentRegistryStub(channel)
    number = 0
    while True:
        number += 1
        prompt = f"call {number} " + "x" * (200_000 if number % 50 == 0 else 10)
        started = time.monotonic()
        try:
            request = text_generation_pb2.GenerateTextRequest(prompt=prompt)
            answer = await stub.GenerateText(request, metadata=_AGENT, timeout=_TIMEOUT_S)
            if answer.text != prompt:
                traffic.failures.append(f"a wrong answer: {answer.text[:80]}")
            if number % 20 == 0:
                await registry.ListAgents(agent_registry_pb2.ListAgentsRequest(), timeout=_TIMEOUT_S)
        except aio.AioRpcError as error:
            traffic.failures.append(f"{error.code().name}: {error.details()}")
        traffic.latencies_s.append(time.monotonic() - started)
        await asyncio.sleep(0.05)


async def _stream(channel: aio.Channel, traffic: Traffic) -> None:
    stub = text_grpc.TextGenerationServiceStub(channel)
    while True:
        words = " ".join(f"word{number}" for number in range(500))
        request = text_generation_pb2.StreamTextRequest(prompt=words)
        try:
            pieces = [p.text async for p in stub.StreamText(request, metadata=_AGENT, timeout=_TIMEOUT_S)]
        except aio.AioRpcError as error:
            traffic.failures.append(f"stream: {error.code().name}: {error.details()}")
        else:
            if "".join(pieces) != words:
                traffic.failures.append("a wrong stream")
            traffic.streamed += len(pieces)
        await asyncio.sleep(0.2)


async def _browse(http_port: int, traffic: Traffic) -> None:
    url = f"http://127.0.0.1:{http_port}/health"
    while True:
        try:
            await asyncio.to_thread(_page, url)
            traffic.pages += 1
        except OSError as error:
            traffic.failures.append(f"page: {error}")
        await asyncio.sleep(0.5)


def _page(url: str) -> None:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
        answer.read()


async def _look(memory: Watched) -> None:
    while True:
        memory.look()
        await asyncio.sleep(0.1)
