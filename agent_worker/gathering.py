"""Gathers what an iterator yields, for a moment, so that fewer and longer messages are sent."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

T = TypeVar("T")
# However fast they come: a caller that reads slowly must not be generated far ahead of.
_MOST = 256


async def gathered(pieces: AsyncIterator[T], delay_s: float) -> AsyncGenerator[list[T], None]:
    """All pieces in order: the first at once, then groups of those that came within `delay_s`.

    Raises:
        Exception: what the iterator raises, after what came before.
    """
    waiting: list[T] = []
    # Something waits, or the end is there; and room for more.
    some, due, room = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def take() -> None:
        async for piece in pieces:
            waiting.append(piece)
            some.set()
            if len(waiting) >= _MOST:
                due.set()
                room.clear()
                await room.wait()

    def end(_: asyncio.Task[None]) -> None:
        some.set()
        due.set()

    loop = asyncio.get_running_loop()
    taking = asyncio.create_task(take())
    taking.add_done_callback(end)
    wait_s = 0.0
    try:
        while True:
            await some.wait()
            timer = loop.call_later(wait_s, due.set)
            await due.wait()
            timer.cancel()
            group = waiting.copy()
            waiting.clear()
            room.set()
            if not taking.done():
                some.clear()
                due.clear()
            if group:
                yield group
                wait_s = delay_s
            elif taking.done():
                break
        await taking
    finally:
        taking.cancel()
        await asyncio.wait([taking])
