"""Counts a worker's calls, bounds how many run at a time, and ends those that brought no deadline."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from agentruntime import errors
from grpc import aio

from agent_worker.vitals import Vitals

# Health and reflection must answer however busy the agent is.
_EXEMPT = "/grpc."


class AdmissionInterceptor(aio.ServerInterceptor):
    """Stands before the agent's own handlers.

    Handlers that are plain functions run in the server's thread pool, whose size bounds them already; a thread
    cannot be ended from outside, so the default deadline does not reach them.
    """

    def __init__(self, vitals: Vitals, concurrency: int, default_timeout_s: float) -> None:
        self._vitals = vitals
        self._slots = asyncio.Semaphore(concurrency)
        self._default_timeout_s = default_timeout_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_EXEMPT):
            return handler
        kind = ("stream" if handler.request_streaming else "unary") + (
            "_stream" if handler.response_streaming else "_unary"
        )
        admitted = self._admit(getattr(handler, kind), kind)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(admitted, handler.request_deserializer, handler.response_serializer)

    def _admit(self, behaviour: Any, kind: str) -> Any:
        """The behaviour, counted and bounded, in the form that it had: grpc.aio tells by it where to run it."""
        if inspect.isasyncgenfunction(behaviour):
            return self._admit_stream(behaviour)
        if inspect.iscoroutinefunction(behaviour):
            return self._admit_call(behaviour, bounded=kind == "unary_unary")

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            with self._counted():
                return behaviour(request, context)

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._counted():
                yield from behaviour(request, context)

        return stream if kind.endswith("_stream") else call

    def _admit_stream(self, behaviour: Any) -> Any:
        async def stream(request: Any, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            with self._counted():
                async with self._slots:
                    async for response in behaviour(request, context):
                        yield response

        return stream

    def _admit_call(self, behaviour: Any, *, bounded: bool) -> Any:
        async def call(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            limit = self._default_timeout_s if bounded and context.time_remaining() is None else None
            with self._counted():
                clock = asyncio.timeout(limit)
                try:
                    async with clock, self._slots:
                        return await behaviour(request, context)
                except TimeoutError:
                    if not clock.expired():
                        raise  # the agent's own
                    raise errors.DeadlineExceeded(
                        f"the call came without a deadline and took more than {limit:g}s, this agent's default"
                    ) from None

        return call

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._vitals.requests_processed += 1
