"""What callers take of a server before their calls are handled: calls at a time, and the memory of requests."""

import asyncio
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
from grpc import aio

from agentruntime import errors

# gRPC's own default for what a peer may send, https://grpc.io/docs/guides/max-message-size; stated because
# callers are told so.
LONGEST_MESSAGE_BYTES = 4 * 2**20
# Both are said by Envoy alone.
PRINCIPAL_KEY = "x-uapi-principal"
CONCURRENCY_KEY = "x-uapi-concurrency"
# Requests that come in at a time. They are whole already where Envoy is, and pass quickly.
_MOST_ARRIVING = 16
# After so long one is given up that does not come, as may be of a method that Envoy knows nothing of.
_LONGEST_ARRIVAL_S = 10.0


class Intake:
    """Of one server.

    gRPC makes room for a whole message as soon as somebody waits for it. So no more are waited for at a time than
    there is room for, and those that are here may have so many bytes in all.

    Args:
        held_bytes: of the requests that wait or are handled.
    """

    def __init__(self, held_bytes: int) -> None:
        self._held_bytes = held_bytes
        self._left_bytes = held_bytes
        fitting = held_bytes // (2 * LONGEST_MESSAGE_BYTES)
        self._arriving = asyncio.Semaphore(max(1, min(_MOST_ARRIVING, fitting)))
        self._in_flight: Counter[str] = Counter()

    def enter(self, metadata: Iterable[tuple[str, str | bytes]]) -> "Entry":
        """Counts a call, the current task's, against its caller's limit, if there is one.

        Raises:
            TooManyCalls: the caller has as many in flight as it may.
        """
        said = {str(key): str(value) for key, value in metadata if key in (PRINCIPAL_KEY, CONCURRENCY_KEY)}
        limit = int(said.get(CONCURRENCY_KEY, "0"))
        if not limit:
            return Entry(self, None)
        caller = said.get(PRINCIPAL_KEY, "")
        if self._in_flight[caller] >= limit:
            raise errors.TooManyCalls(
                f"the caller has {limit} calls in flight at this worker, which is all that it may; "
                "try again when one has ended"
            )
        self._in_flight[caller] += 1
        return Entry(self, caller)

    def leave(self, caller: str) -> None:
        self._in_flight[caller] -= 1
        if not self._in_flight[caller]:
            del self._in_flight[caller]

    async def make_way(self) -> None:
        """Waits until a request may come in; then say when it has `arrived`."""
        await self._arriving.acquire()

    def arrived(self) -> None:
        self._arriving.release()

    def take(self, size_bytes: int) -> None:
        """Holds a request's bytes; `give_back` them.

        Raises:
            QueueFull: there is no room.
        """
        if size_bytes > self._left_bytes:
            raise errors.QueueFull(
                f"the server holds {self._held_bytes - self._left_bytes} bytes of requests, and may hold "
                f"{self._held_bytes}; try again later"
            )
        self._left_bytes -= size_bytes

    def give_back(self, size_bytes: int) -> None:
        self._left_bytes += size_bytes


class Entry:
    """One call, of the current task; what it holds is given back when that ends, if not before."""

    def __init__(self, intake: Intake, caller: str | None) -> None:
        self._intake = intake
        self._caller = caller
        self._patience: asyncio.TimerHandle | None = None
        self._came_bytes = 0
        self._held_bytes = 0
        self._task = _task()
        self._task.add_done_callback(lambda _: self.leave())

    async def expect(self) -> None:
        """Waits until the call's request may come in."""
        await self._intake.make_way()
        self._patience = asyncio.get_running_loop().call_later(_LONGEST_ARRIVAL_S, self._task.cancel)

    def reading(self, deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
        """The deserializer, which notes how long the request is."""

        def read(raw: bytes) -> Any:
            self._came_bytes = len(raw)
            return raw if deserialize is None else deserialize(raw)

        return read

    def came(self, *, held: bool) -> None:
        """The request is here.

        Args:
            held: its bytes count.

        Raises:
            QueueFull: there is no room for them.
        """
        self._let_next()
        if held:
            self._intake.take(self._came_bytes)
            self._held_bytes = self._came_bytes

    def leave(self) -> None:
        """The call is over but for the caller's hearing of it, who may make the next as soon as it has."""
        self._let_next()
        self._intake.give_back(self._held_bytes)
        self._held_bytes = 0
        if self._caller is not None:
            self._intake.leave(self._caller)
            self._caller = None

    def _let_next(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
            self._intake.arrived()


class IntakeInterceptor(aio.ServerInterceptor):
    """Bounds the memory of requests of one message, for a server without an admission of its own."""

    def __init__(self, held_bytes: int) -> None:
        self._intake = Intake(held_bytes)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        entry = self._intake.enter(())
        await entry.expect()
        kind = "unary_stream" if handler.response_streaming else "unary_unary"
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        within = _within(entry, getattr(handler, kind))
        return make(within, entry.reading(handler.request_deserializer), handler.response_serializer)


def _within(entry: Entry, behaviour: Any) -> Any:
    """The behaviour, once the request is here."""
    if inspect.isasyncgenfunction(behaviour):

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            entry.came(held=True)
            async for response in behaviour(request, context):
                yield response

        return stream

    async def call(request: Any, context: Any) -> Any:
        entry.came(held=True)
        return await behaviour(request, context)

    return call


def _task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task
