"""scale: from telling an agent with one worker to have fifty until all of them are ready."""

import asyncio
import statistics
import time

from agentruntime._proto.uapi.v1 import agent_pool_pb2, agent_pool_pb2_grpc

from benchmarks.platform import platform
from benchmarks.table import Table

_WORKERS = 50
_ROUNDS = 5
_TIMEOUT_S = 60
_POLL_S = 0.05


async def measure() -> Table:
    seconds: list[float] = []
    async with platform() as running, running.pool() as pool:
        await running.run("echo", 1)
        for _ in range(_ROUNDS):
            await _until_alone(pool)
            started = time.perf_counter()
            deployment = await _scale(pool, _WORKERS)
            seconds.append(time.perf_counter() - started)
            ready = [worker for worker in deployment.workers if worker.state == agent_pool_pb2.WORKER_STATE_READY]
            if len({worker.pid for worker in ready}) != _WORKERS:
                raise SystemExit(f"{len(ready)} workers are ready, not {_WORKERS}")
            await _scale(pool, 1)
    table = Table(
        "scale",
        f"From ScaleAgent, through the gateway, to its answer that {_WORKERS} echo workers are ready where there was "
        f"one, {_ROUNDS} times.",
    )
    table.add(f"1 to {_WORKERS} workers, slowest", max(seconds), "s", 3)
    table.add(f"1 to {_WORKERS} workers, p50", statistics.median(seconds), "s")
    return table


async def _scale(pool: "agent_pool_pb2_grpc.AgentPoolAsyncStub", replicas: int) -> agent_pool_pb2.Deployment:
    request = agent_pool_pb2.ScaleAgentRequest(agent="echo", replicas=replicas)
    return (await pool.ScaleAgent(request, timeout=_TIMEOUT_S)).deployment


async def _until_alone(pool: "agent_pool_pb2_grpc.AgentPoolAsyncStub") -> None:
    async with asyncio.timeout(_TIMEOUT_S):
        while True:
            request = agent_pool_pb2.GetDeploymentRequest(agent="echo")
            workers = (await pool.GetDeployment(request, timeout=_TIMEOUT_S)).deployment.workers
            if [worker.state for worker in workers] == [agent_pool_pb2.WORKER_STATE_READY]:
                return
            await asyncio.sleep(_POLL_S)
