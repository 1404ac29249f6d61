"""An ASGI application that is made when it is first asked for: what it imports would delay the gateway's start."""

import asyncio
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ENDS = {
    "error": {
        "code": "UNAVAILABLE",
        "reason": "UNAVAILABLE",
        "message": "the gateway ends; ask again, by the same message id if a message was sent",
    }
}


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
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await application(scope, receive, sending)
        except asyncio.CancelledError:
            # Only uvicorn does that, when the gateway ends; it would say then that the application has failed.
            # A stream that has begun is cut.
            if not started:
                await JSONResponse(_ENDS, status_code=503)(scope, receive, send)
