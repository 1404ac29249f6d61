"""An ASGI application that is made when it is first asked for: what it imports would delay the gateway's start."""

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send


class Later:
    """Args:
    make: makes the application, in a thread of its own, so that calls go on meanwhile.
    """

    def __init__(self, make: Callable[[], ASGIApp]) -> None:
        self._make = make
        self._made: asyncio.Future[ASGIApp] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._made is None:
            self._made = asyncio.ensure_future(asyncio.to_thread(self._make))
        # Whoever asked first may hang up.
        application = await asyncio.shield(self._made)
        await application(scope, receive, send)
