"""Pieces in groups: order, the first at once, errors after what came before, not far ahead of a slow reader."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from agent_worker.gathering import gathered


async def numbers(count: int, *, fail: bool = False) -> AsyncIterator[int]:
    for number in range(count):
        yield number
        await asyncio.sleep(0)
    if fail:
        raise ValueError("after the last")


async def test_all_come_in_order_and_few_groups() -> None:
    groups = [group async for group in gathered(numbers(100), 0.02)]
    assert [piece for group in groups for piece in group] == list(range(100))
    assert len(groups) <= 3


async def test_the_first_comes_at_once() -> None:
    release = asyncio.Event()

    async def slow() -> AsyncIterator[int]:
        yield 1
        await release.wait()
        yield 2

    groups = gathered(slow(), 60.0)
    assert await asyncio.wait_for(anext(groups), 5) == [1]
    release.set()
    # The end does not wait either.
    assert await asyncio.wait_for(anext(groups), 5) == [2]
    assert [group async for group in groups] == []


async def test_an_error_follows_what_came_before_it() -> None:
    seen: list[int] = []

    async def read() -> None:
        async for group in gathered(numbers(5, fail=True), 0.02):
            seen.extend(group)

    with pytest.raises(ValueError, match="after the last"):
        await read()
    assert seen == list(range(5))


async def test_nothing_is_nothing() -> None:
    assert [group async for group in gathered(numbers(0), 0.02)] == []


async def test_a_slow_reader_holds_a_fast_generator_up() -> None:
    made = 0

    async def fast() -> AsyncIterator[int]:
        nonlocal made
        while True:
            made += 1
            yield made

    groups = gathered(fast(), 60.0)
    first = await asyncio.wait_for(anext(groups), 5)
    for _ in range(100):
        await asyncio.sleep(0)
    assert made <= len(first) + 256
    assert await asyncio.wait_for(anext(groups), 5) == list(range(len(first) + 1, len(first) + 257))
    await groups.aclose()


async def test_closing_closes_the_generator() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0.001)
        finally:
            closed.set()

    groups = gathered(endless(), 0.01)
    await anext(groups)
    await groups.aclose()
    assert closed.is_set()
