"""Plain handlers, which run in threads, as coroutines and async generators: one way to bound, count and end calls."""

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, NoReturn

import grpc
from grpc import aio

_END = object()
# Pieces that a generator is ahead of its caller.
_AHEAD = 16


class _AbortedError(Exception):
    """A plain handler's `abort`, on its way to the event loop."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing_metadata: Any) -> None:
        super().__init__(details)
        self.status = (code, details, trailing_metadata)


class ThreadContext:
    """What a plain handler gets as its context: the call's own, fit for use in a thread."""

    def __init__(self, context: aio.ServicerContext[Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        raise _AbortedError(code, details, trailing_metadata)

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        raise _AbortedError(status.code, status.details, status.trailing_metadata)

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        asyncio.run_coroutine_threadsafe(self._context.send_initial_metadata(initial_metadata), self._loop).result()

    def is_active(self) -> bool:
        return not (self._context.done() or self._context.cancelled())

    def add_callback(self, callback: Callable[[], None]) -> bool:
        if not self.is_active():
            return False
        done: Any = lambda _: callback()  # noqa: E731 — grpc's stub names a type that it does not export
        self._loop.call_soon_threadsafe(lambda: self._context.add_done_callback(done))
        return True


async def call(
    executor: Executor,
    behaviour: Any,
    freed: Callable[[], None],
    request: Any,
    context: aio.ServicerContext[Any, Any],
) -> Any:
    """What a plain function returns.

    Args:
        executor: runs it.
        behaviour: the handler.
        freed: is called in the event loop once no thread works on this, which may be long after a cancellation.
        request: one, or an async iterator of them where callers stream.
        context: of the call.
    """
    loop = asyncio.get_running_loop()
    work = _submit(executor, freed, lambda: behaviour(_plain(request, loop), ThreadContext(context, loop)))
    try:
        return await asyncio.wrap_future(work)
    except _AbortedError as aborted:
        return await context.abort(*aborted.status)


async def stream(
    executor: Executor,
    behaviour: Any,
    freed: Callable[[], None],
    request: Any,
    context: aio.ServicerContext[Any, Any],
) -> AsyncIterator[Any]:
    """What a plain generator yields; all of it runs in one thread. Arguments as of `call`."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[Any] = asyncio.Queue()
    room = threading.Semaphore(_AHEAD)
    gone = threading.Event()

    def run() -> None:
        for piece in behaviour(_plain(request, loop), ThreadContext(context, loop)):
            room.acquire()
            if gone.is_set():
                return
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    work = _submit(executor, freed, run)
    work.add_done_callback(lambda _: loop.call_soon_threadsafe(pieces.put_nowait, _END))
    try:
        while (piece := await pieces.get()) is not _END:
            room.release()
            yield piece
        work.result()
    except _AbortedError as aborted:
        await context.abort(*aborted.status)
    finally:
        work.cancel()
        gone.set()
        room.release()


def _submit(executor: Executor, freed: Callable[[], None], run: Callable[[], Any]) -> Future[Any]:
    """Runs it with the context variables of the caller: the trace is one."""
    loop = asyncio.get_running_loop()
    work = executor.submit(contextvars.copy_context().run, run)
    work.add_done_callback(lambda _: loop.call_soon_threadsafe(freed))
    return work


def _plain(request: Any, loop: asyncio.AbstractEventLoop) -> Any:
    """The request; a stream of them as a plain iterator."""
    return _iterate(request, loop) if hasattr(request, "__aiter__") else request


def _iterate(requests: AsyncIterator[Any], loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    iterator = aiter(requests)

    async def following() -> Any:
        return await anext(iterator, _END)

    while (request := asyncio.run_coroutine_threadsafe(following(), loop).result()) is not _END:
        yield request
