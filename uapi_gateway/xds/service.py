"""The control plane's gRPC services that Envoy calls: delta ADS, and load reporting."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from agentruntime import log
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.load_stats.v3 import lrs_pb2, lrs_pb2_grpc
from grpc import aio

from uapi_gateway.load import Load
from uapi_gateway.xds.cache import Cache
from uapi_gateway.xds.clusters import cluster_name
from uapi_gateway.xds.delta import Session
from uapi_gateway.xds.resources import CLUSTER, ENDPOINTS, EXTENSION, ROUTE

_log = log.get("uapi_gateway.xds")


class DiscoveryService(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]  # untyped package
    """Delta ADS. `rejections` counts what Envoy did not accept; each one is a bug, and logged."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.rejections = 0
        self._sessions: set[Session] = set()
        self._heard = asyncio.Event()

    async def routed(self, agent_id: str, longest_s: float) -> bool:
        """Waits until Envoy can route to an agent by its name, for at most so long; says whether it can."""
        by_name, by_route = (cluster_name(agent_id, idempotent=idempotent) for idempotent in (True, False))
        return await self._until(
            lambda session: (
                by_name in session.endpoints or (by_route in session.endpoints and session.in_force(ROUTE))
            ),
            longest_s,
        )

    async def guarded(self, longest_s: float) -> bool:
        """Waits until Envoy decides by the present keys and rules, for at most so long; says whether it does."""
        return await self._until(lambda session: session.in_force(EXTENSION), longest_s)

    async def balanced(self, longest_s: float) -> bool:
        """Waits until Envoy balances over the present workers only, for at most so long; says whether it does."""
        return await self._until(lambda session: session.settled(CLUSTER) and session.settled(ENDPOINTS), longest_s)

    async def _until(self, holds: Callable[[Session], bool], longest_s: float) -> bool:
        try:
            async with asyncio.timeout(longest_s):
                while not any(holds(session) for session in self._sessions):
                    await self._heard.wait()
        except TimeoutError:
            return False
        return True

    async def DeltaAggregatedResources(
        self, requests: AsyncIterator[Any], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        due = asyncio.Event()
        session = Session(self._cache, due.set)
        reader = asyncio.create_task(self._read(requests, session))
        reader.add_done_callback(lambda _task: due.set())
        self._cache.listen(session)
        self._sessions.add(session)
        try:
            while not reader.done():
                await due.wait()
                due.clear()
                for response in session.flush():
                    yield response
            # A stream that broke is how an Envoy that ended says so.
            if error := reader.exception():
                _log.info("the stream to envoy broke", error=str(error))
        finally:
            self._cache.unlisten(session)
            self._sessions.discard(session)
            reader.cancel()

    async def _read(self, requests: AsyncIterator[Any], session: Session) -> None:
        async for request in requests:
            if request.HasField("error_detail"):
                self.rejections += 1
                _log.error("envoy rejected a resource", kind=request.type_url, error=request.error_detail.message)
            session.request(request)
            # Whoever waits looks again; who waits from now on waits for the next.
            self._heard.set()
            self._heard = asyncio.Event()

    async def StreamAggregatedResources(
        self, requests: AsyncIterator[Any], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this control plane speaks incremental xDS only")
        yield  # makes it a generator, as its kind of method must be


class LoadService(lrs_pb2_grpc.LoadReportingServiceServicer):  # type: ignore[misc]  # untyped package
    """Has Envoy report the load of all clusters, and takes the reports in."""

    def __init__(self, load: Load, interval_s: float) -> None:
        self._load = load
        self._interval_s = interval_s

    async def StreamLoadStats(
        self, requests: AsyncIterator[Any], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        wanted = lrs_pb2.LoadStatsResponse(send_all_clusters=True)
        wanted.load_reporting_interval.FromMilliseconds(round(self._interval_s * 1000))
        asked = False
        try:
            async for request in requests:
                if asked:
                    self._load.take(request)
                else:
                    # The first request only says who is there.
                    asked = True
                    yield wanted
        finally:
            self._load.envoy_left()
