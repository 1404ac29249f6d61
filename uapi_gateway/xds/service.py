"""The control plane's gRPC services that Envoy calls: delta ADS and load reporting."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from agentruntime import log
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.load_stats.v3 import lrs_pb2, lrs_pb2_grpc
from grpc import aio

from uapi_gateway.xds.cache import Cache
from uapi_gateway.xds.delta import Session
from uapi_gateway.xds.load import Load

_log = log.get("uapi_gateway.xds")


class DiscoveryService(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]  # untyped package
    """Delta ADS. `rejections` counts what Envoy did not accept; each one is a bug, and logged."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.rejections = 0

    async def DeltaAggregatedResources(
        self, requests: AsyncIterator[Any], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        due = asyncio.Event()
        session = Session(self._cache, due.set)
        reader = asyncio.create_task(self._read(requests, session))
        reader.add_done_callback(lambda _task: due.set())
        self._cache.listen(session)
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
            reader.cancel()

    async def _read(self, requests: AsyncIterator[Any], session: Session) -> None:
        async for request in requests:
            if request.HasField("error_detail"):
                self.rejections += 1
                _log.error("envoy rejected a resource", kind=request.type_url, error=request.error_detail.message)
            session.request(request)

    async def StreamAggregatedResources(
        self, requests: AsyncIterator[Any], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this control plane speaks incremental xDS only")
        yield  # makes it a generator, as its kind of method must be


class LoadService(lrs_pb2_grpc.LoadReportingServiceServicer):  # type: ignore[misc]  # untyped package
    """Takes in the load reports of Envoy."""

    def __init__(self, load: Load, interval_s: float) -> None:
        self._load = load
        self._interval_s = interval_s

    async def StreamLoadStats(
        self, requests: AsyncIterator[Any], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        asked = False
        async for request in requests:
            if asked:
                self._load.take(request, time.monotonic())
                continue
            asked = True
            wanted = lrs_pb2.LoadStatsResponse(send_all_clusters=True)
            wanted.load_reporting_interval.FromMilliseconds(round(self._interval_s * 1000))
            yield wanted


def add_to_server(server: aio.Server, discovery: DiscoveryService, load: LoadService) -> None:
    """Enters both services."""
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(discovery, server)
    lrs_pb2_grpc.add_LoadReportingServiceServicer_to_server(load, server)
