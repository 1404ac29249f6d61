"""Watches how many workers are ready: READY to the pool when it last spoke, and alive to the kernel now."""

import asyncio
import contextlib
import time

from agentruntime._proto.uapi.v1 import agent_pool_pb2, agent_pool_pb2_grpc
from agentruntime.home import Home
from grpc import aio

from benchmarks.chaos.victims import Process

# How often the kernel is asked; what is measured is no finer.
INTERVAL_S = 0.01
_RETRY_S = 0.02


class Readiness:
    """Of one agent's workers. The pool may be killed meanwhile; what it said last then counts on."""

    def __init__(self, home: Home, agent: str) -> None:
        self._home = home
        self.agent = agent
        # By pid: a name may go from a worker to its successor.
        self.workers: dict[int, agent_pool_pb2.Worker] = {}
        self._ready: list[Process] = []
        # When, and how many were ready from then on.
        self.changes: list[tuple[float, int]] = []

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            group.create_task(self._look())

    def ready(self) -> list[Process]:
        """The workers that are ready."""
        return [process for process in self._ready if process.alive]

    async def until(self, count: int, without: Process | None = None) -> float:
        """When so many are ready, none of them that one."""
        while True:
            ready = self.ready()
            if len(ready) >= count and without not in ready:
                return time.monotonic()
            await asyncio.sleep(INTERVAL_S)

    async def _look(self) -> None:
        while True:
            count = len(self.ready())
            if not self.changes or self.changes[-1][1] != count:
                self.changes.append((time.monotonic(), count))
            await asyncio.sleep(INTERVAL_S)

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(aio.AioRpcError):
                async with aio.insecure_channel(f"unix:{self._home.pool_socket}") as channel:
                    stub = agent_pool_pb2_grpc.AgentPoolStub(channel)
                    async for event in stub.WatchDeployments(agent_pool_pb2.WatchDeploymentsRequest()):
                        if event.HasField("changed") and event.changed.agent == self.agent:
                            self._take(event.changed)
            await asyncio.sleep(_RETRY_S)

    def _take(self, deployment: agent_pool_pb2.Deployment) -> None:
        self.workers = {worker.pid: worker for worker in deployment.workers}
        self._ready = []
        for worker in deployment.workers:
            if worker.state == agent_pool_pb2.WORKER_STATE_READY:
                # One that has ended since is none that is ready.
                with contextlib.suppress(LookupError):
                    self._ready.append(Process.of(worker.pid))


def longest_without(changes: list[tuple[float, int]], began_at: float, ended_at: float) -> float:
    """The longest time in seconds, within a span, in which no worker was ready."""
    longest = 0.0
    for (at, count), (until, _) in zip(changes, [*changes[1:], (ended_at, 0)], strict=True):
        if count == 0:
            longest = max(longest, min(until, ended_at) - max(at, began_at))
    return longest
