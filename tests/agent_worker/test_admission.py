"""What stands before an agent's handlers, in a server of the test's own."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from agentruntime.interceptors import ServerInterceptor
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from agent_worker.admission import AdmissionInterceptor
from agent_worker.vitals import Vitals

CALL, STREAM = "/t.T/Call", "/t.T/Stream"


class Handlers(grpc.GenericRpcHandler):
    """Bytes in, bytes out, by the behaviours that the test gives."""

    def __init__(self, call: Any, stream: Any) -> None:
        self._found: dict[str, Any] = {
            CALL: grpc.unary_unary_rpc_method_handler(call),
            STREAM: grpc.unary_stream_rpc_method_handler(stream),
        }

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return self._found.get(details.method)


@asynccontextmanager
async def served(
    call: Any = None, stream: Any = None, *, concurrency: int = 4, timeout_s: float = 60.0
) -> AsyncIterator[tuple[aio.Channel, Vitals]]:
    vitals = Vitals()
    server = aio.server(
        ThreadPoolExecutor(concurrency),
        interceptors=[ServerInterceptor(), AdmissionInterceptor(vitals, concurrency, timeout_s)],
    )
    server.add_generic_rpc_handlers((Handlers(call, stream),))
    probe = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(probe, server)
    await probe.set("", health_pb2.HealthCheckResponse.SERVING)
    with tempfile.TemporaryDirectory(prefix="uapi-adm-") as directory:
        address = f"unix:{directory}/s"
        server.add_insecure_port(address)
        await server.start()
        try:
            async with aio.insecure_channel(address) as channel:
                yield channel, vitals
        finally:
            await server.stop(0)


async def async_call(request: bytes, context: Any) -> bytes:
    return request


async def async_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield request
    yield request


def plain_call(request: bytes, context: Any) -> bytes:
    return request


def plain_stream(request: bytes, context: Any) -> Iterator[bytes]:
    yield request
    yield request


async def failing_call(request: bytes, context: Any) -> bytes:
    raise ValueError("mine")


@pytest.mark.parametrize(("call", "stream"), [(async_call, async_stream), (plain_call, plain_stream)])
async def test_calls_of_every_form_are_answered_and_counted(call: Any, stream: Any) -> None:
    async with served(call, stream) as (channel, vitals):
        unary: Any = channel.unary_unary(CALL)
        streaming: Any = channel.unary_stream(STREAM)
        assert await unary(b"x", timeout=5) == b"x"
        assert [piece async for piece in streaming(b"y", timeout=5)] == [b"y", b"y"]
        assert vitals.requests_processed == 2


async def test_a_failed_call_was_answered_too() -> None:
    async with served(failing_call) as (channel, vitals):
        unary: Any = channel.unary_unary(CALL)
        with pytest.raises(aio.AioRpcError) as caught:
            await unary(b"x", timeout=5)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "mine" not in str(caught.value.details())
        assert vitals.requests_processed == 1


async def test_the_agents_deadline_is_for_unary_calls_without_one() -> None:
    async def slow_call(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(0.3)
        return request

    async def slow_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        await asyncio.sleep(0.3)
        yield request

    async with served(slow_call, slow_stream, timeout_s=0.05) as (channel, _):
        unary: Any = channel.unary_unary(CALL)
        streaming: Any = channel.unary_stream(STREAM)
        with pytest.raises(aio.AioRpcError) as caught:
            await unary(b"x")
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await unary(b"x", timeout=5) == b"x"
        assert [piece async for piece in streaming(b"x")] == [b"x"]


async def test_an_agents_own_timeout_is_its_own_error() -> None:
    async def times_out(request: bytes, context: Any) -> bytes:
        raise TimeoutError

    async with served(times_out) as (channel, _):
        unary: Any = channel.unary_unary(CALL)
        for deadline_s in (5, None):
            with pytest.raises(aio.AioRpcError) as caught:
                await unary(b"x", timeout=deadline_s)
            assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_health_answers_while_all_slots_are_taken_and_is_not_counted() -> None:
    release = asyncio.Event()

    async def held(request: bytes, context: Any) -> bytes:
        await release.wait()
        return request

    async with served(held, concurrency=1) as (channel, vitals):
        unary: Any = channel.unary_unary(CALL)
        calls = [asyncio.ensure_future(unary(b"x", timeout=10)) for _ in range(3)]
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert vitals.requests_processed == 0
        release.set()
        assert await asyncio.gather(*calls) == [b"x"] * 3
        assert vitals.requests_processed == 3
