"""A few at a time, and nobody for ever."""

import asyncio

from agent_pool.turns import Turns
from tests.waiting import eventually


async def test_a_few_at_a_time_in_order() -> None:
    turns, now, seen = Turns(2, 60.0), set[int](), list[int]()

    async def take(number: int) -> None:
        async with turns.turn():
            now.add(number)
            seen.append(number)
            assert len(now) <= 2
            await asyncio.sleep(0)
            now.remove(number)

    await asyncio.gather(*(take(number) for number in range(20)))
    assert seen == list(range(20))


async def test_one_that_takes_long_does_not_hold_up_the_others() -> None:
    turns, over = Turns(1, 0.02), asyncio.Event()
    served: list[int] = []

    async def take(number: int, *, wait: bool) -> None:
        async with turns.turn():
            if wait:
                await over.wait()
            served.append(number)

    hangs = asyncio.create_task(take(0, wait=True))
    await asyncio.gather(*(take(number, wait=False) for number in (1, 2)))
    assert served == [1, 2]
    over.set()
    await hangs
    # Its place was given back once: there is still only one.
    holds = asyncio.create_task(take(3, wait=False))
    await eventually(holds.done)
    assert turns._places._value == 1


async def test_a_turn_that_fails_is_over() -> None:
    turns = Turns(1, 60.0)
    for _ in range(3):
        try:
            async with turns.turn():
                raise ValueError
        except ValueError:
            continue
    async with asyncio.timeout(1), turns.turn():
        pass
