"""What the pool is told of the load: all of it each time, and by whichever pool there is."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest_asyncio
from agentruntime.home import Home
from envoy.service.load_stats.v3 import lrs_pb2

from tests.uapi_gateway.pool_service import PoolStandIn
from tests.uapi_gateway.test_load import said
from tests.uapi_gateway.test_registry import agent
from tests.waiting import eventually
from uapi_gateway.admin import Admin
from uapi_gateway.ejections import Ejections
from uapi_gateway.load import Load
from uapi_gateway.load_report import LoadReport
from uapi_gateway.pool_watch import pool_channel
from uapi_gateway.registry import Registry


@pytest_asyncio.fixture
async def reporting(home: Home) -> AsyncIterator[tuple[Load, Ejections]]:
    registry = Registry()
    registry.put_pool_agent(agent("a", "a-01"))
    load, ejections = Load(registry), Ejections(registry)
    async with pool_channel(home.pool_socket) as channel:
        task = asyncio.create_task(LoadReport(channel, load, ejections, Admin(home.envoy_admin_socket)).run())
        yield load, ejections
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_reports_go_to_the_pool_there_is(home: Home, reporting: tuple[Load, Ejections]) -> None:
    load, ejections = reporting
    first, second = PoolStandIn(), PoolStandIn()
    async with first.serving(home):
        # Nothing is known of the load before Envoy has said something: silence would mean that there is none.
        load.due.set()
        await eventually(lambda: not load.due.is_set())
        assert first.reports == []
        load.take(lrs_pb2.LoadStatsRequest(cluster_stats=[said("agent/a", 2, 5)]))
        await eventually(lambda: first.reports)
        assert (first.load("a").in_flight, first.load("a").begun) == (2, 5)
        event = {"cluster_name": "agent/a", "upstream_url": "/a-01", "action": "EJECT", "enforced": True}
        ejections.take(json.dumps(event), 0)
        await eventually(lambda: len(first.reports) > 1)
        assert first.reports[1].ejected_worker_ids == ["a-01"]
        assert first.load("a").in_flight == 2

    def reported() -> bool:
        load.take(lrs_pb2.LoadStatsRequest(cluster_stats=[said("agent/a", 3, 0)]))
        return bool(second.reports)

    async with second.serving(home):
        await eventually(reported)
        assert second.load("a").in_flight == 3
