"""Ends work whose caller hangs up: where the answer is one piece, nobody else finds out, for nothing is written."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from agentruntime.errors import Cancelled
from starlette.requests import Request
from starlette.types import Receive

_T = TypeVar("_T")


async def while_there(request: Request, work: Awaitable[_T]) -> _T:
    """What comes of work for a request whose body has been read.

    Raises:
        Cancelled: the caller has hung up, and the work was cancelled.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Cancelled("the caller has hung up")
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
