"""The HTTP port: health, metrics, and the APIs that it is given."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from uapi_gateway.access.shares import InFlight
from uapi_gateway.http import health, metrics
from uapi_gateway.http.guard import Door, Guard
from uapi_gateway.http.observation import Observer
from uapi_gateway.http.shares import HttpShares


def application(observer: Observer, door: Door, in_flight: InFlight, more: Sequence[BaseRoute] = ()) -> Starlette:
    """The ASGI application, with more routes than its own."""

    async def platform_health(_request: Request) -> Response:
        return _health(health.platform_document(await observer.observe()))

    async def agent_health(request: Request) -> Response:
        name = request.path_params["agent"]
        target = observer.registry.find(name)
        if target is None:
            return JSONResponse({"status": "unknown", "reason": f"agent '{name}' not found"}, status_code=404)
        return _health(health.agent_document(target.agent, await observer.observe(), time.time()))

    async def metrics_page(_request: Request) -> Response:
        page = metrics.exposition(await observer.observe(), observer.registry.agents())
        return Response(page, media_type=metrics.CONTENT_TYPE)

    return Starlette(
        routes=[
            Route("/health", platform_health),
            Route("/health/{agent}", agent_health),
            Route("/metrics", metrics_page),
            *more,
        ],
        middleware=[Middleware(Guard, door=door), Middleware(HttpShares, in_flight=in_flight)],
    )


def _health(document: dict[str, object]) -> Response:
    return JSONResponse(document, status_code=200 if document["status"] == "healthy" else 503)


class Server(uvicorn.Server):
    """Uvicorn in an event loop that has its own handling of signals; it rests while nobody asks.

    Its own loop looks ten times a second whether it is to end.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ends = asyncio.Event()

    def end(self) -> None:
        """Has `serve` return, when the requests under way are answered."""
        self.should_exit = True
        self._ends.set()

    async def main_loop(self) -> None:
        # Each look sets the date that answers have.
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._ends.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server(observer: Observer, door: Door, in_flight: InFlight, more: Sequence[BaseRoute] = ()) -> Server:
    """A server behind that door; `serve(sockets=[bound])` runs it."""
    config = uvicorn.Config(
        application(observer, door, in_flight, more),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    return Server(config)
