"""Each agent's conversations are kept as the agent says."""

import asyncio

import pytest

from tests.uapi_gateway.conversations.memory import Holding
from tests.uapi_gateway.conversations.test_log import KEY, append, opened, over, piece, running, said
from tests.waiting import eventually
from uapi_gateway.conversations.expiry import keep_bounds
from uapi_gateway.registry import Agent, Keeping, Registry


async def test_what_is_older_or_more_goes_again_and_again() -> None:
    registry = Registry()
    async with running() as (log, store):
        hold = await opened(log, Holding())
        await append(log, hold, said("m"), *(piece("m") for _ in range(5)), over("m"))
        loop = asyncio.create_task(keep_bounds(log, registry, 0.01))
        registry.put_pool_agent(Agent("b", (), (), keeping=Keeping(ttl_s=0.001, max_events=1)))
        registry.put_pool_agent(Agent("a", (), (), keeping=Keeping(max_events=4)))
        await eventually(lambda: len(store.kept[KEY].events) == 4)
        store.troubles = ["away"] * 3
        await eventually(lambda: not store.troubles)
        registry.put_pool_agent(Agent("a", (), (), keeping=Keeping(ttl_s=0.001)))
        await eventually(lambda: KEY not in store.kept)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


async def test_a_file_that_cannot_be_removed_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    registry.put_pool_agent(Agent("a", (), (), keeping=Keeping(ttl_s=1)))
    asked: list[str] = []

    async def expire(agent: str, _before_ns: int) -> int:
        asked.append(agent)
        raise PermissionError("a file")

    async with running() as (log, _):
        monkeypatch.setattr(log, "expire", expire)
        loop = asyncio.create_task(keep_bounds(log, registry, 0.01))
        await eventually(lambda: len(asked) > 1)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
