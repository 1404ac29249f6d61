"""What callers see of what handlers raise, in each form that a handler can have."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from agentruntime import errors, status, trace
from agentruntime.interceptors import ServerInterceptor
from grpc import aio

CALL, STREAM = "/t.T/Call", "/t.T/Stream"
TRACE = trace.TraceContext.new()


def fail(how: bytes, context: Any) -> Any:
    """Ends the call as the request says; returns what is to be awaited where the context is asynchronous."""
    if how == b"ours":
        raise errors.AgentNotFound("a")
    if how == b"bug":
        raise ValueError("secret")
    if how == b"abort":
        return context.abort(grpc.StatusCode.DATA_LOSS, "mine")
    return None


async def async_call(request: bytes, context: Any) -> bytes:
    if (aborting := fail(request, context)) is not None:
        await aborting
    return current_trace()


async def async_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield current_trace()
    if (aborting := fail(request, context)) is not None:
        await aborting


async def writing_stream(request: bytes, context: Any) -> None:
    await context.write(current_trace())
    if (aborting := fail(request, context)) is not None:
        await aborting


def current_trace() -> bytes:
    context = trace.current.get()
    return context.trace_id.encode() if context else b""


class Handlers(grpc.GenericRpcHandler):
    def __init__(self, call: Any, stream: Any) -> None:
        self._call, self._stream = call, stream

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method == CALL:
            return grpc.unary_unary_rpc_method_handler(self._call)
        return grpc.unary_stream_rpc_method_handler(self._stream) if details.method == STREAM else None


@asynccontextmanager
async def served(call: Any, stream: Any) -> AsyncIterator[aio.Channel]:
    server = aio.server(interceptors=[ServerInterceptor()])
    server.add_generic_rpc_handlers((Handlers(call, stream),))
    with tempfile.TemporaryDirectory(prefix="uapi-int-") as directory:
        server.add_insecure_port(f"unix:{directory}/s")
        await server.start()
        try:
            async with aio.insecure_channel(f"unix:{directory}/s") as channel:
                yield channel
        finally:
            await server.stop(0)


async def outcome(channel: aio.Channel, method: str, request: bytes) -> Any:
    """What came back, or the error that the client rebuilds."""
    metadata = ((trace.HEADER, TRACE.header()),)
    unary: Any = channel.unary_unary(CALL)
    streaming: Any = channel.unary_stream(STREAM)
    try:
        if method == CALL:
            return await unary(request, metadata=metadata, timeout=5)
        return b"".join([piece async for piece in streaming(request, metadata=metadata, timeout=5)])
    except aio.AioRpcError as error:
        return status.decode(error)


@pytest.mark.parametrize("stream", [async_stream, writing_stream])
@pytest.mark.parametrize("method", [CALL, STREAM])
async def test_every_form(stream: Any, method: str) -> None:
    async with served(async_call, stream) as channel:
        for _ in range(5):
            ours = await outcome(channel, method, b"ours")
            assert type(ours) is errors.AgentNotFound
            assert ours.metadata == {"agent": "a"}
            bug = await outcome(channel, method, b"bug")
            assert type(bug) is errors.Internal
            assert "secret" not in bug.message
            assert bug.metadata["request_id"] in bug.message
            aborted = await outcome(channel, method, b"abort")
            assert type(aborted) is errors.DataLoss
            assert aborted.message == "mine"
            assert await outcome(channel, method, b"fine") == TRACE.trace_id.encode()


async def test_cancellation_reaches_the_handler() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def waits(request: bytes, context: Any) -> bytes:
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return request

    async with served(waits, async_stream) as channel:
        unary: Any = channel.unary_unary(CALL)
        call = unary(b"x", timeout=30)
        await asyncio.wait_for(started.wait(), 5)
        call.cancel()
        await asyncio.wait_for(cancelled.wait(), 5)


async def test_what_is_not_served_stays_unimplemented() -> None:
    async with served(async_call, async_stream) as channel:
        other: Any = channel.unary_unary("/t.T/Other")
        with pytest.raises(aio.AioRpcError) as caught:
            await other(b"", timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
