"""The gateway, run: what is started in which order, and ended in which."""

import asyncio
import contextlib
import fcntl
import json
import resource
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from agentruntime import log
from agentruntime.errors import FailedPrecondition
from agentruntime.files import write_atomically
from agentruntime.home import Home

from uapi_gateway import serving, sockets
from uapi_gateway.access_log import keep_access_log_small
from uapi_gateway.ejections import hearing
from uapi_gateway.parts import Parts, access_log
from uapi_gateway.settings import Settings

_log = log.get("uapi_gateway")


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Runs the gateway until `stop` is set.

    Raises:
        FailedPrecondition: another gateway has the runtime directory, or a port is taken.
        Unavailable: Envoy does not come up.
    """
    _raise_descriptor_limit()
    settings.home.create()
    with _only_one(settings.home):
        await _run(Parts(settings), stop)


async def _run(parts: Parts, stop: asyncio.Event) -> None:
    home = parts.settings.home
    async with contextlib.AsyncExitStack() as stack:
        _close_last(parts, stack)
        for served in _behind_envoy(parts, stop):
            await stack.enter_async_context(served)
        stack.enter_context(hearing(parts.ejections, sockets.ejections_pipe(home)))
        # Ends first of all, so that calls in flight still find what they need.
        stack.push_async_callback(parts.envoy.stop, parts.settings.drain_s)
        await parts.envoy.start()
        await stack.enter_async_context(serving.http(parts))
        await stack.enter_async_context(_running(stop, *_loops(parts)))
        parts.conversations.begin()
        _announce(parts)
        stack.callback(home.gateway_file.unlink, missing_ok=True)
        _log.info("gateway ready", addresses=list(parts.own.addresses))
        await stop.wait()
        _log.info("gateway ends")


def _close_last(parts: Parts, stack: contextlib.AsyncExitStack) -> None:
    """When nothing is served any more."""
    stack.callback(parts.store.close)
    for part in (parts.audit, parts.pool, parts.service, parts.carrier, parts.conversations):
        stack.push_async_callback(part.close)
    stack.callback(parts.book.close)


def _behind_envoy(parts: Parts, stop: asyncio.Event) -> tuple[AbstractAsyncContextManager[None], ...]:
    """What Envoy and workers are to find before Envoy starts, in this order."""
    return (
        serving.discovery(parts),
        serving.relay(parts),
        serving.control(parts),
        serving.kernel(parts),
        serving.system_call_doors(parts),
        parts.outlets.opened(parts.settings.home),
        _running(stop, parts.conversations.run()),
        parts.conversations.door().open(),
    )


def _loops(parts: Parts) -> tuple[Coroutine[Any, Any, None], ...]:
    """What goes on beside, once Envoy serves."""
    return (
        parts.watch.run(),
        parts.certificates.watch(),
        parts.carrier.caching.run(),
        parts.audit.run(),
        parts.outlets.run(),
        parts.load_report.run(),
        parts.envoy.watch(),
        parts.registrar.expire_leases(),
        parts.book.run(),
        parts.identity.run(),
        parts.health_loop.run(),
        keep_access_log_small(access_log(parts.settings), parts.envoy.admin, parts.settings.access_log_bytes),
    )


@contextlib.contextmanager
def _only_one(home: Home) -> Iterator[None]:
    """Holds the runtime directory; a lock of flock(2) ends with its holder, however that ends."""
    with (home.run / "gateway.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(
                f"another gateway runs for {home.root}; end it, or name another directory by UAPI_HOME"
            ) from None
        yield


def _raise_descriptor_limit() -> None:
    """Envoy and the relay need a descriptor for every connection; Envoy inherits the limit."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.asynccontextmanager
async def _running(stop: asyncio.Event, *loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs loops beside; one that fails ends the gateway, for it could not keep its promises without."""
    tasks = [asyncio.create_task(loop) for loop in loops]

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            _log.error("a loop of the gateway failed", exc_info=task.exception())
            stop.set()

    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _announce(parts: Parts) -> None:
    """Tells commands on this machine where the gateway is."""
    own, sources = parts.own, parts.settings.sources
    content = {
        "pid": own.pid,
        "version": own.version,
        "grpc_address": own.addresses[0].removeprefix("https://"),
        "http_address": own.addresses[1],
        "started": time.time(),
        "anonymous": "call" if parts.settings.anonymous_calls else "none",
        "require_client_cert": parts.settings.tls_require_client_cert,
    }
    if sources.server is not None:
        ca = str(sources.callers) if sources.callers else ""
        content["tls"] = {"cert": str(sources.server.cert), "key": str(sources.server.key), "ca": ca}
    write_atomically(parts.settings.home.gateway_file, json.dumps(content).encode())
