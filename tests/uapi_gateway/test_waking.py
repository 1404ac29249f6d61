"""The wakes' figures, and who waits for what. How calls fare is in test_relay.py."""

import asyncio

from agentruntime.home import Home

from tests.uapi_gateway.pool_service import PoolStandIn, deployment
from tests.uapi_gateway.test_registry import agent
from tests.waiting import eventually
from uapi_gateway.pool_watch import pool_channel
from uapi_gateway.registry import Registry
from uapi_gateway.waking import ABANDONED, BUCKETS_S, FAILED, OK, Figures, Waker


def test_figures() -> None:
    figures = Figures()
    for outcome, took_s in ((OK, 0.01), (OK, 0.011), (OK, 1000.0), (FAILED, 3.0), (ABANDONED, 3.0)):
        figures.add(outcome, took_s)
    assert figures.outcomes == {OK: 3, FAILED: 1, ABANDONED: 1}
    assert figures.buckets == [1, 1, *[0] * (len(BUCKETS_S) - 2), 1]


async def test_an_answer_lasts_until_the_registry_hears_of_the_agent(home: Home) -> None:
    registry, pool = Registry(), PoolStandIn()
    pool.deployments["a"] = deployment("a", {"a-01": "unix:/a-01"})
    async with pool.serving(home), pool_channel(home.pool_socket) as channel:
        waker = Waker(registry, channel)
        first, second = waker.join("a"), waker.join("a")
        assert first is second
        await asyncio.wait([first.task])
        assert [each.worker_id for each in first.endpoints] == ["a-01"]
        assert first.error is None
        for wake in (first, second):
            waker.leave("a", wake)
        assert waker.find("a") is first
        registry.put_pool_agent(agent("a", "a-01"))
        assert waker.find("a") is None
        assert pool.woken == ["a"]
        registry.remove_pool_agent("a")
        assert list(waker.figures()) == []


async def test_a_wake_goes_on_while_somebody_waits(home: Home) -> None:
    pool, asked = PoolStandIn(), asyncio.Event()

    async def hang(_agent: str) -> None:
        asked.set()
        await asyncio.sleep(3600)

    pool.on_wake = hang
    async with pool.serving(home), pool_channel(home.pool_socket) as channel:
        registry = Registry()
        registry.put_pool_agent(agent("a"))
        waker = Waker(registry, channel)
        first, second = waker.join("a"), waker.join("a")
        await asyncio.wait_for(asked.wait(), 5)
        waker.leave("a", first)
        assert waker.find("a") is second
        waker.leave("a", second)
        assert waker.find("a") is None
        await eventually(second.task.cancelled)
        assert [wakes.outcomes for _, wakes in waker.figures()] == [{ABANDONED: 1}]
        # It ends after its agent was removed.
        asked.clear()
        third = waker.join("a")
        await asyncio.wait_for(asked.wait(), 5)
        registry.remove_pool_agent("a")
        waker.leave("a", third)
        await eventually(third.task.cancelled)
        assert list(waker.figures()) == []
