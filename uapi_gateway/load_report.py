"""Tells the pool, for as long as the gateway runs, how much the agents are called and which workers Envoy ejected."""

import asyncio
import math
import time
from collections import Counter
from urllib.parse import quote

import grpc
from agentruntime import log
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from agentruntime._proto.uapi.v1 import agent_pool_pb2_grpc
from agentruntime.errors import Unavailable
from grpc import aio

from uapi_gateway.admin import Admin
from uapi_gateway.ejections import Ejections
from uapi_gateway.load import Load

_log = log.get("uapi_gateway.load_report")
_RETRY_S = 0.5
# For so long there need be no report that would only say again that nobody calls; the pool goes by one for 3 s.
_SILENCE_S = 0.9
# Agents whose gauges are read at a time: their names must fit into the head of a request, which may have 60 KiB.
_MOST_LOOKED_AT = 500


class LoadReport:
    """Keeps one `ReportLoad` stream open: a message for each report of Envoy, and at once when it ejects a worker."""

    def __init__(self, channel: aio.Channel, load: Load, ejections: Ejections, admin: Admin) -> None:
        self._stub: agent_pool_pb2_grpc.AgentPoolAsyncStub = agent_pool_pb2_grpc.AgentPoolStub(channel)
        self._load = load
        self._ejections = ejections
        self._admin = admin
        ejections.listeners.append(load.due.set)
        load.left.append(ejections.envoy_left)

    async def run(self) -> None:
        """Reports until cancelled."""
        while True:
            call = self._stub.ReportLoad()
            try:
                await self._report(call)
            except (grpc.RpcError, asyncio.InvalidStateError) as error:
                # A stream that has ended refuses to be written to in one of these two ways.
                _log.debug("the pool does not take the load; tried again", error=str(error))
            finally:
                call.cancel()
            await asyncio.sleep(_RETRY_S)
            self._load.due.set()

    async def _report(self, call: "aio.StreamUnaryCall[pool.ReportLoadRequest, pool.ReportLoadResponse]") -> None:
        said_s, silent = -math.inf, False
        while True:
            await self._load.due.wait()
            self._load.due.clear()
            if self._load.envoy_reports:
                if doubtful := self._load.doubtful:
                    await self._look(doubtful[:_MOST_LOOKED_AT])
                # All of it each time: silence about an agent would mean that it has no calls.
                loads, workers = self._load.report(), self._ejections.workers()
                quiet = not workers and not any(each.in_flight or each.begun or each.queued for each in loads)
                if quiet and silent and time.monotonic() - said_s < _SILENCE_S:
                    continue
                message = pool.ReportLoadRequest(loads=loads, ejected_worker_ids=workers)
                said_s, silent = time.monotonic(), quiet
                try:
                    await call.write(message)
                except BaseException:
                    self._load.take_back(loads)
                    self._ejections.take_back(workers)
                    raise

    async def _look(self, agent_ids: list[str]) -> None:
        """Reads Envoy's gauges of the calls in flight of these agents and their workers."""
        wanted = rf"^cluster\.agent/({'|'.join(agent_ids)})(-[0-9]+)?\.upstream_rq_active$"
        try:
            text = await self._admin.get("/stats?filter=" + quote(wanted, safe=""))
        except Unavailable as error:
            _log.warning("envoy's gauges cannot be read", error=error.message)
            return
        active: Counter[str] = Counter()
        for line in text.splitlines():
            name, _, value = line.rpartition(": ")
            cluster = name.removeprefix("cluster.agent/").removesuffix(".upstream_rq_active")
            active[cluster if cluster in agent_ids else cluster.rpartition("-")[0]] += int(value)
        for agent_id in agent_ids:
            self._load.take_active(agent_id, active[agent_id])
