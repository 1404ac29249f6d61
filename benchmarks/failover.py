"""failover: from kill -9 of a worker to the last moment in which Envoy had anything to do with it."""

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agentruntime._proto.uapi.v1 import agent_pool_pb2
from grpc import aio

from benchmarks.chaos.victims import Process
from benchmarks.load import Load, Target
from benchmarks.platform import Platform, platform
from benchmarks.table import Table
from uapi_gateway.admin import Admin

_WORKERS = 4
_ROUNDS = 12
_IN_FLIGHT = 4
_CALLS = 1_000_000
# How long a dead worker is watched; it must have been replaced by then.
_WATCH_S = 1.0
_POLL_S = 0.002
_TIMEOUT_S = 30
# Of an endpoint in Envoy's /clusters: calls that it was given, and connections that were tried.
_TRAFFIC = ("rq_total", "cx_total")


async def measure() -> Table:
    last_ms: list[float] = []
    interval_ms: list[float] = []
    async with platform() as running:
        await running.run("echo", _WORKERS)
        admin = Admin(running.home.envoy_admin_socket)
        async with _calling(running):
            for number in range(_ROUNDS):
                workers = await _ready(running)
                last, interval = await _kill(admin, workers[number % _WORKERS])
                last_ms.append(last * 1000)
                interval_ms.append(interval * 1000)
    table = Table(
        "failover",
        f"From kill -9 of one of {_WORKERS} echo workers to the last time that Envoy gave it a call or tried "
        f"to connect to it, with {_IN_FLIGHT} calls always in flight, {_ROUNDS} times. No call failed. Seen by "
        f"Envoy's own counters, read every {statistics.median(interval_ms):.0f} ms; the figure is when they were "
        "first read as they stayed, so it is up to that much too high.",
    )
    table.add("last traffic, latest", max(last_ms), "ms", 100)
    table.add("last traffic, p50", statistics.median(last_ms), "ms")
    return table


@asynccontextmanager
async def _calling(running: Platform) -> AsyncIterator[None]:
    """Keeps calls in flight; one that fails ends the benchmark."""
    load = Load(Target(running.address, "echo"))
    calls = asyncio.create_task(load.unary(_CALLS, _IN_FLIGHT))
    try:
        yield
        if calls.done():
            calls.result()
    finally:
        calls.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calls
        await load.close()


async def _ready(running: Platform) -> list[agent_pool_pb2.Worker]:
    """The workers, once all are ready."""
    async with running.pool() as pool, asyncio.timeout(_TIMEOUT_S):
        while True:
            request = agent_pool_pb2.ListWorkersRequest(agent="echo")
            with contextlib.suppress(aio.AioRpcError):
                workers = list((await pool.ListWorkers(request, timeout=5)).workers)
                if [each.state for each in workers] == [agent_pool_pb2.WORKER_STATE_READY] * _WORKERS:
                    return workers
            await asyncio.sleep(0.05)


async def _kill(admin: Admin, worker: agent_pool_pb2.Worker) -> tuple[float, float]:
    """Seconds from the kill to the last traffic, and between two looks for it."""
    victim = Process.of(worker.pid)
    path = worker.address.removeprefix("unix:")
    if await _traffic(admin, path) == 0:
        raise SystemExit(f"{worker.worker_id} had no traffic before it was killed")
    killed_at, _ = await victim.kill()
    last_at, before, samples = killed_at, -1, 0
    while (now := time.monotonic()) < killed_at + _WATCH_S:
        count = await _traffic(admin, path)
        if count > before:
            last_at = now
        if count < before:
            break  # taken out of Envoy's endpoints
        before = count
        samples += 1
        await asyncio.sleep(_POLL_S)
    return last_at - killed_at, (time.monotonic() - killed_at) / max(samples, 1)


async def _traffic(admin: Admin, path: str) -> int:
    """What Envoy has sent to an endpoint so far; 0 if it knows none of that path."""
    total = 0
    for line in (await admin.get("/clusters")).splitlines():
        name, address, counter, value = [*line.rsplit("::", 3), "", "", ""][:4]
        if name == "agent/echo" and path in address and counter in _TRAFFIC:
            total += int(value)
    return total
