"""start: from telling the pool to start one more worker to that worker's first answer, beside a fresh interpreter."""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import grpc
from agentruntime._proto.uapi.v1 import (
    agent_pool_pb2,
    agent_pool_pb2_grpc,
    text_generation_pb2,
    text_generation_pb2_grpc,
)
from grpc import aio

from benchmarks.platform import platform
from benchmarks.table import Table

_STARTS = 50
_TIMEOUT_S = 60
# What an interpreter needs to serve the same agent: a worker's server, without pool, template or limits.
_FRESH = """
import asyncio, sys
from agent_worker import loader
from agent_worker.lag import LagSelector
from agent_worker.server import WorkerServer
from agentruntime.launch import WorkerSpec
async def main():
    loaded = loader.load(sys.argv[1], "echo_agent:Echo", [])
    server = WorkerServer(WorkerSpec("echo-01", "echo", 1, 1), lag)
    await server.start(loaded, f"unix:{sys.argv[2]}", "echo-01")
    await asyncio.Event().wait()
lag = LagSelector()
with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(lag)) as runner:
    runner.run(main())
"""


async def measure() -> Table:
    forked: list[float] = []
    fresh: list[float] = []
    async with platform() as running:
        await running.run("echo", 1)
        bundle = next(running.home.bundles.glob("*/app/echo_agent.py")).parents[1]
        async with aio.insecure_channel(f"unix:{running.home.pool_socket}") as channel:
            pool = agent_pool_pb2_grpc.AgentPoolStub(channel)
            for _ in range(_STARTS):
                forked.append(await _start_forked(pool))
                fresh.append(await _start_fresh(bundle))
    table = Table(
        "start",
        f"Milliseconds from the request to start one more echo worker to its first answer, {_STARTS} starts, each "
        "followed by one of a fresh interpreter that serves the same agent without limits or isolation.",
    )
    table.add("worker, p50", statistics.median(forked), "ms", 25)
    table.add("worker, p90", statistics.quantiles(forked, n=10)[8], "ms")
    table.add("fresh interpreter, p50", statistics.median(fresh), "ms")
    table.add("worker / fresh, median of pairs", statistics.median(map(float.__truediv__, forked, fresh)), "×")
    return table


async def _start_forked(pool: "agent_pool_pb2_grpc.AgentPoolAsyncStub") -> float:
    started = time.perf_counter()
    request = agent_pool_pb2.RunAgentRequest(image="echo:latest", replicas=2)
    response = await pool.RunAgent(request, timeout=_TIMEOUT_S)
    newest = max(response.deployment.workers, key=lambda worker: worker.started_at.ToNanoseconds())
    await _answer(newest.address)
    elapsed = time.perf_counter() - started
    await pool.StopAgent(agent_pool_pb2.StopAgentRequest(name=newest.worker_id), timeout=_TIMEOUT_S)
    return elapsed * 1000


async def _start_fresh(bundle: Path) -> float:
    with tempfile.TemporaryDirectory(prefix="uapi-fresh-") as directory:
        path = Path(directory, "s")
        started = time.perf_counter()
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", _FRESH, str(bundle), str(path))
        try:
            while not path.exists():
                if process.returncode is not None:
                    raise SystemExit("the fresh interpreter ended before it served")
                await asyncio.sleep(0.001)
            await _answer(f"unix:{path}")
            return (time.perf_counter() - started) * 1000
        finally:
            process.kill()
            await process.wait()


async def _answer(address: str) -> None:
    async with aio.insecure_channel(address) as channel:
        stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
        request = text_generation_pb2.GenerateTextRequest(prompt="first")
        try:
            response = await stub.GenerateText(request, timeout=_TIMEOUT_S, wait_for_ready=True)
        except grpc.RpcError as error:
            raise SystemExit(f"no first answer: {error.code()}") from error
        if response.text != "first":
            raise SystemExit(f"a wrong answer: {response.text!r}")
