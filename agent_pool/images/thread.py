"""Work in a thread that nobody leaves behind."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


async def in_thread(call: Callable[[threading.Event], Result]) -> Result:
    """Does something long in a thread, which is told when its caller is cancelled; then it is waited for.

    So what it works on, a lock or a directory, is its own to the end.
    """
    given_up = threading.Event()
    work = asyncio.ensure_future(asyncio.to_thread(call, given_up))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        given_up.set()
        await _ended(work)
        raise


async def _ended(work: "asyncio.Future[Result]") -> None:
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            continue  # once more: the caller goes on with that anyway
    if not work.cancelled():
        work.exception()  # seen, so that nobody logs it
