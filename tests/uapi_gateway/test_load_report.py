"""What the pool is told of the load: all of it each time, and by whichever pool there is."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from agentruntime.home import Home
from envoy.service.load_stats.v3 import lrs_pb2

from tests.uapi_gateway.pool_service import PoolStandIn
from tests.uapi_gateway.test_load import said
from tests.uapi_gateway.test_registry import agent
from tests.waiting import eventually
from uapi_gateway import load_report
from uapi_gateway.admin import Admin
from uapi_gateway.ejections import Ejections
from uapi_gateway.load import Load
from uapi_gateway.load_report import LoadReport
from uapi_gateway.pool_watch import pool_channel
from uapi_gateway.registry import Registry

EJECTED = json.dumps(
    {
        "cluster_name": "agent/a",
        "upstream_url": "/a-01",
        "action": "EJECT",
        "type": "CONSECUTIVE_5XX",
        "enforced": True,
    }
)


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    made.put_pool_agent(agent("a", "a-01"))
    return made


@pytest_asyncio.fixture
async def reporting(home: Home, registry: Registry) -> AsyncIterator[tuple[Load, Ejections]]:
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
        ejections.take(EJECTED, 0)
        await eventually(lambda: len(first.reports) > 1)
        assert first.reports[1].ejected_worker_ids == ["a-01"]
        assert first.load("a").in_flight == 2

    def reported() -> bool:
        load.take(lrs_pb2.LoadStatsRequest(cluster_stats=[said("agent/a", 3, 0)]))
        return bool(second.reports)

    async with second.serving(home):
        await eventually(reported)
        assert second.load("a").in_flight == 3


async def test_that_nobody_calls_is_not_said_each_time(
    home: Home, reporting: tuple[Load, Ejections], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_report, "_SILENCE_S", 60.0)
    load, _ = reporting
    pool = PoolStandIn()
    async with pool.serving(home):
        for number, calls in enumerate((0, 2, 2, 0), 1):
            load.take(lrs_pb2.LoadStatsRequest(cluster_stats=[said("agent/a", calls, 0)]))
            await eventually(lambda number=number: len(pool.reports) == number)  # type: ignore[misc]  # of this round
            assert pool.load("a").in_flight == calls
        for _ in range(2):
            load.take(lrs_pb2.LoadStatsRequest(cluster_stats=[said("agent/a", 0, 0)]))
            await eventually(lambda: not load.due.is_set())
        load.take(lrs_pb2.LoadStatsRequest(cluster_stats=[said("agent/a", 0, 1)]))
        await eventually(lambda: pool.load("a").begun == 1)
        assert len(pool.reports) == 5


async def test_an_ejection_that_no_pool_heard_of_is_said_to_the_next(
    home: Home, reporting: tuple[Load, Ejections], monkeypatch: pytest.MonkeyPatch
) -> None:
    load, ejections = reporting
    failed = asyncio.Event()
    monkeypatch.setattr(load, "take_back", lambda _: failed.set())
    ejections.take(EJECTED, 0)
    load.take(lrs_pb2.LoadStatsRequest())
    await asyncio.wait_for(failed.wait(), 10)
    pool = PoolStandIn()
    async with pool.serving(home):
        await eventually(lambda: pool.reports)
        assert pool.reports[0].ejected_worker_ids == ["a-01"]


async def test_what_an_envoy_ejected_is_forgotten_with_it(
    registry: Registry, reporting: tuple[Load, Ejections]
) -> None:
    load, ejections = reporting
    ejections.take(EJECTED, 0)
    assert ejections.circuit_open(registry.require("a"), 0)
    load.envoy_left()
    assert not ejections.circuit_open(registry.require("a"), 0)
