"""What the HTTP pages show: gathered from Envoy, the pool and the registry when somebody asks."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import grpc
import psutil
from agentruntime import log
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from agentruntime._proto.uapi.v1 import agent_pool_pb2_grpc
from agentruntime.errors import Unavailable
from grpc import aio

from uapi_gateway.conversations import writing
from uapi_gateway.conversations.log import EventLog
from uapi_gateway.egress import outlets
from uapi_gateway.envoy import Envoy
from uapi_gateway.http.statistics import TARGET, Statistics, read_statistics
from uapi_gateway.registry import Registry
from uapi_gateway.relay import Figures, Relay

_log = log.get("uapi_gateway.http")
_POOL_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Observation:
    """The platform at one moment. None stands for a part that did not answer."""

    statistics: Statistics | None
    workers: Sequence[pool.Worker] | None
    node: pool.GetNodeResponse | None
    # Of gateway and Envoy together.
    own_memory_bytes: int = 0
    own_cpu_percent: float = 0.0
    envoy_restarts: int = 0
    uptime_s: float = 0.0
    relay: Figures = field(default_factory=Figures)
    # By agent.
    egress: Mapping[str, outlets.Figures] = field(default_factory=dict)
    conversations: writing.Figures = field(default_factory=writing.Figures)
    conversations_away: bool = False

    @property
    def problems(self) -> list[str]:
        """What is missing, a sentence each."""
        missing = []
        if self.statistics is None:
            missing.append("Envoy does not answer")
        if self.node is None:
            missing.append("the pool does not answer")
        if self.conversations_away:
            # Anybody may read this; `agent status` says why.
            missing.append("the conversations cannot be read or written")
        return missing


@dataclass
class Observer:
    """Gathers observations."""

    registry: Registry
    envoy: Envoy
    pool_channel: aio.Channel
    relay: Relay
    outlets: outlets.Outlets
    conversations: EventLog
    _began: float = field(default_factory=time.monotonic)
    _processes: dict[int, psutil.Process] = field(default_factory=dict)

    async def observe(self) -> Observation:
        """Asks Envoy and the pool, both at once, for at most a few seconds."""
        statistics, (workers, node) = await asyncio.gather(self._statistics(), self._pool())
        memory_bytes, cpu_percent = self._own_usage()
        return Observation(
            statistics=statistics,
            workers=workers,
            node=node,
            own_memory_bytes=memory_bytes,
            own_cpu_percent=cpu_percent,
            envoy_restarts=self.envoy.restarts,
            uptime_s=time.monotonic() - self._began,
            relay=self.relay.figures(),
            egress=self.outlets.figures(),
            conversations=self.conversations.figures,
            conversations_away=bool(self.conversations.trouble),
        )

    async def _statistics(self) -> Statistics | None:
        try:
            text = await self.envoy.admin.get(TARGET)
        except Unavailable as error:
            _log.warning("no statistics", error=error.message)
            return None
        return read_statistics(text, self.registry.worker_ids())

    async def _pool(self) -> tuple[Sequence[pool.Worker] | None, pool.GetNodeResponse | None]:
        stub: agent_pool_pb2_grpc.AgentPoolAsyncStub = agent_pool_pb2_grpc.AgentPoolStub(self.pool_channel)
        try:
            workers, node = await asyncio.gather(
                stub.ListWorkers(pool.ListWorkersRequest(), timeout=_POOL_TIMEOUT_S),
                stub.GetNode(pool.GetNodeRequest(), timeout=_POOL_TIMEOUT_S),
            )
        except grpc.RpcError as error:
            _log.warning("the pool does not answer", error=str(error))
            return None, None
        return workers.workers, node

    def _own_usage(self) -> tuple[int, float]:
        memory_bytes, cpu_percent = 0, 0.0
        present = {}
        for pid in filter(None, (psutil.Process().pid, self.envoy.pid)):
            try:
                process = self._processes.get(pid) or psutil.Process(pid)
                memory_bytes += process.memory_info().rss
                # Since the last time it was asked; 0.0 the first time.
                cpu_percent += process.cpu_percent()
            except psutil.Error:
                continue
            present[pid] = process
        self._processes = present
        return memory_bytes, cpu_percent
