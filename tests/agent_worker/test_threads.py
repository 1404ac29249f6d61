"""Plain handlers behind a server of the test's own: what they get, and what becomes of what they do."""

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc import aio

from agent_worker import threads
from tests.waiting import eventually

UNARY, STREAM, GATHER = "/t.T/Unary", "/t.T/Stream", "/t.T/Gather"


@asynccontextmanager
async def served(behaviour: Any, method: str) -> AsyncIterator[tuple[aio.Channel, list[str]]]:
    freed: list[str] = []
    executor = ThreadPoolExecutor(2)

    async def call(request: Any, context: Any) -> Any:
        return await threads.call(executor, behaviour, lambda: freed.append(method), request, context)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        async for piece in threads.stream(executor, behaviour, lambda: freed.append(method), request, context):
            yield piece

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            return {
                UNARY: grpc.unary_unary_rpc_method_handler(call),
                STREAM: grpc.unary_stream_rpc_method_handler(stream),
                GATHER: grpc.stream_unary_rpc_method_handler(call),
            }[details.method]

    server = aio.server()
    server.add_generic_rpc_handlers((Handlers(),))
    with tempfile.TemporaryDirectory(prefix="uapi-thr-") as directory:
        server.add_insecure_port(f"unix:{directory}/s")
        await server.start()
        try:
            async with aio.insecure_channel(f"unix:{directory}/s") as channel:
                yield channel, freed
        finally:
            await server.stop(0)
            await asyncio.to_thread(executor.shutdown)


async def test_a_stream_of_requests_is_a_plain_iterator() -> None:
    def gather(requests: Iterator[bytes], context: Any) -> bytes:
        return b"".join(requests)

    async with served(gather, GATHER) as (channel, freed):
        call: Any = channel.stream_unary(GATHER)
        assert await call(iter([b"a", b"b", b"c"]), timeout=5) == b"abc"
        await eventually(lambda: freed == [GATHER])


async def test_the_context_works_in_a_thread() -> None:
    done = threading.Event()

    def greet(request: bytes, context: Any) -> bytes:
        assert context.is_active()
        assert 0 < context.time_remaining() < 6
        assert context.add_callback(done.set)
        context.send_initial_metadata((("first", "1"),))
        context.set_trailing_metadata((("last", "2"),))
        context.set_code(grpc.StatusCode.DATA_LOSS)
        context.set_details("some")
        return str(dict(context.invocation_metadata())["mine"]).encode()

    async with served(greet, UNARY) as (channel, _):
        unary: Any = channel.unary_unary(UNARY)
        call = unary(b"", metadata=(("mine", "x"),), timeout=5)
        assert ("first", "1") in list(await call.initial_metadata())
        assert await call.code() is grpc.StatusCode.DATA_LOSS
        assert ("last", "2") in list(await call.trailing_metadata())
        assert await asyncio.to_thread(done.wait, 5)


@pytest.mark.parametrize("method", [UNARY, STREAM])
async def test_an_abort_ends_the_call(method: str) -> None:
    def call(request: bytes, context: Any) -> Any:
        context.abort(grpc.StatusCode.ABORTED, "mine", (("key", "value"),))

    def stream(request: bytes, context: Any) -> Iterator[bytes]:
        yield b"1"
        context.abort(grpc.StatusCode.ABORTED, "mine", (("key", "value"),))

    async with served(call if method == UNARY else stream, method) as (channel, freed):
        make: Any = channel.unary_unary if method == UNARY else channel.unary_stream
        for _ in range(5):
            made = make(method)(b"", timeout=5)
            if method == STREAM:
                assert await made.read() == b"1"
                with pytest.raises(aio.AioRpcError):
                    await made.read()
            assert (await made.code(), await made.details()) == (grpc.StatusCode.ABORTED, "mine")
            assert ("key", "value") in list(await made.trailing_metadata())
        await eventually(lambda: len(freed) == 5)


async def test_a_generator_ends_with_its_caller_and_is_not_far_ahead() -> None:
    made, closed = 0, threading.Event()

    def endless(request: bytes, context: Any) -> Iterator[bytes]:
        nonlocal made
        try:
            while True:
                made += 1
                yield bytes(100_000)
        finally:
            closed.set()

    async with served(endless, STREAM) as (channel, freed):
        streaming: Any = channel.unary_stream(STREAM)
        call = streaming(b"", timeout=30)
        await call.read()
        call.cancel()
        assert await asyncio.to_thread(closed.wait, 10)
        await eventually(lambda: freed == [STREAM])
        assert made < 500
