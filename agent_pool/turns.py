"""Turns: a few of many do something at a time, and one that takes long does not hold up the others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Taken in the order of asking.

    Args:
        places: so many at a time.
        longest_s: after so long, the next one's turn begins beside one that goes on.
    """

    def __init__(self, places: int, longest_s: float) -> None:
        self._places = asyncio.Semaphore(places)
        self._longest_s = longest_s

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits for a turn, and has it until the end of the context."""
        await self._places.acquire()
        place = _Place(self._places)
        timer = asyncio.get_running_loop().call_later(self._longest_s, place.give)
        try:
            yield
        finally:
            timer.cancel()
            place.give()


class _Place:
    """One that is given back once, whoever does it first."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places: asyncio.Semaphore | None = places

    def give(self) -> None:
        places, self._places = self._places, None
        if places is not None:
            places.release()
