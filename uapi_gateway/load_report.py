"""Tells the pool, for as long as the gateway runs, how much the agents are called and which workers Envoy ejected."""

import asyncio

import grpc
from agentruntime import log
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from agentruntime._proto.uapi.v1 import agent_pool_pb2_grpc
from grpc import aio

from uapi_gateway.ejections import Ejections
from uapi_gateway.load import Load

_log = log.get("uapi_gateway.load_report")
_RETRY_S = 0.5


class LoadReport:
    """Keeps one `ReportLoad` stream open: a message for each report of Envoy, and at once when it ejects a worker."""

    def __init__(self, channel: aio.Channel, load: Load, ejections: Ejections) -> None:
        self._stub: agent_pool_pb2_grpc.AgentPoolAsyncStub = agent_pool_pb2_grpc.AgentPoolStub(channel)
        self._load = load
        self._ejections = ejections
        ejections.listeners.append(load.due.set)

    async def run(self) -> None:
        """Reports until cancelled."""
        while True:
            call = self._stub.ReportLoad()
            try:
                await self._report(call)
            except (grpc.RpcError, asyncio.InvalidStateError) as error:
                # A stream that has ended refuses to be written to in one of these two ways.
                _log.info("the pool does not take the load; tried again", error=str(error))
            finally:
                call.cancel()
            await asyncio.sleep(_RETRY_S)

    async def _report(self, call: "aio.StreamUnaryCall[pool.ReportLoadRequest, pool.ReportLoadResponse]") -> None:
        while True:
            await self._load.due.wait()
            self._load.due.clear()
            if self._load.envoy_reports:
                # All of it each time: silence about an agent would mean that it has no calls.
                message = pool.ReportLoadRequest(
                    loads=self._load.report(), ejected_worker_ids=self._ejections.workers()
                )
                await call.write(message)
