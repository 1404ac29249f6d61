"""What callers may take of a worker before their calls are handled."""

import asyncio
from typing import Any

import grpc
import pytest
from agentruntime import errors, status
from agentruntime.intake import LONGEST_MESSAGE_BYTES, Intake, IntakeInterceptor
from agentruntime.interceptors import ServerInterceptor
from grpc import aio

from tests.agent_worker.test_admission import CALL, STREAM, Handlers, async_call, served
from tests.waiting import eventually

MIB = 2**20


def limited(principal: str, limit: int) -> tuple[tuple[str, str], ...]:
    return (("x-uapi-principal", principal), ("x-uapi-concurrency", str(limit)))


async def test_each_caller_has_as_many_calls_in_flight_as_it_may() -> None:
    go = asyncio.Event()

    async def slow(request: bytes, context: Any) -> bytes:
        await go.wait()
        return request

    async with served(slow) as (channel, admission):
        call: Any = channel.unary_unary(CALL)
        first = [call(b"x", metadata=limited("key:a", 2), timeout=20) for _ in range(2)]
        await eventually(lambda: len(admission._calls) == 2)
        with pytest.raises(aio.AioRpcError) as caught:
            await call(b"x", metadata=limited("key:a", 2), timeout=20)
        refused = status.decode(caught.value)
        assert isinstance(refused, errors.TooManyCalls)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # Another's calls are its own, and so are those of callers without a limit.
        others = [call(b"y", metadata=limited("key:b", 2), timeout=20), call(b"z", timeout=20)]
        await eventually(lambda: len(admission._calls) == 4)
        go.set()
        assert [await each for each in (*first, *others)] == [b"x", b"x", b"y", b"z"]
        assert await call(b"again", metadata=limited("key:a", 2), timeout=20) == b"again"
        assert not admission._intake._in_flight


async def test_a_stream_counts_until_it_ends() -> None:
    async def endless(request: bytes, context: Any) -> Any:
        yield request
        await asyncio.sleep(60)

    async with served(async_call, endless) as (channel, admission):
        stream: Any = channel.unary_stream(STREAM)
        call: Any = channel.unary_unary(CALL)
        one = stream(b"x", metadata=limited("key:a", 1), timeout=30)
        assert await one.read() == b"x"
        with pytest.raises(aio.AioRpcError, match="1 calls in flight"):
            await call(b"x", metadata=limited("key:a", 1), timeout=20)
        one.cancel()
        await eventually(lambda: not admission._intake._in_flight)
        assert await call(b"x", metadata=limited("key:a", 1), timeout=20) == b"x"


async def test_requests_that_are_held_have_a_bound_together() -> None:
    go = asyncio.Event()

    async def slow(request: bytes, context: Any) -> bytes:
        await go.wait()
        return b"done"

    async with served(slow, concurrency=1, held_bytes=3 * MIB) as (channel, admission):
        call: Any = channel.unary_unary(CALL)
        kept = [call(bytes(MIB), timeout=20) for _ in range(2)]
        await eventually(lambda: admission._intake._left_bytes == MIB)
        with pytest.raises(aio.AioRpcError) as caught:
            await call(bytes(MIB + 1), timeout=20)
        assert isinstance(status.decode(caught.value), errors.QueueFull)
        small = call(b"small", timeout=20)
        go.set()
        assert [await each for each in (*kept, small)] == [b"done"] * 3
        await eventually(lambda: admission._intake._left_bytes == 3 * MIB)


async def test_no_more_requests_come_in_at_a_time_than_there_is_room_for() -> None:
    intake = Intake(4 * LONGEST_MESSAGE_BYTES)
    came: list[int] = []

    async def one(number: int, go: asyncio.Event) -> None:
        entry = intake.enter(())
        await entry.expect()
        came.append(number)
        await go.wait()
        entry.came(held=True)

    events = [asyncio.Event() for _ in range(3)]
    tasks = [asyncio.create_task(one(number, go)) for number, go in enumerate(events)]
    await eventually(lambda: came == [0, 1])
    events[0].set()
    await eventually(lambda: came == [0, 1, 2])
    # One that is cancelled makes room, too.
    tasks[1].cancel()
    await asyncio.wait(tasks[:2])
    assert not intake._arriving.locked()
    events[2].set()
    await tasks[2]


async def test_a_request_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentruntime.intake._LONGEST_ARRIVAL_S", 0.2)
    intake = Intake(MIB)

    async def never() -> None:
        await intake.enter(()).expect()
        await asyncio.sleep(60)

    task = asyncio.create_task(never())
    await asyncio.wait([task], timeout=20)
    assert task.cancelled()
    assert not intake._arriving.locked()


async def test_a_server_without_an_admission_bounds_its_requests() -> None:
    go = asyncio.Event()

    async def slow(request: bytes, context: Any) -> bytes:
        await go.wait()
        return b"done"

    async def stream(request: bytes, context: Any) -> Any:
        yield request

    server = aio.server(interceptors=[ServerInterceptor(), IntakeInterceptor(3 * MIB + 100)])
    server.add_generic_rpc_handlers((Handlers(slow, stream),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_unary(CALL)
            kept = [asyncio.ensure_future(call(bytes(MIB), timeout=20)) for _ in range(8)]
            done, waiting = await asyncio.wait(kept, return_when=asyncio.FIRST_EXCEPTION)
            refused: Any = next(each.exception() for each in done if each.exception())
            assert isinstance(status.decode(refused), errors.QueueFull)
            assert waiting
            streaming: Any = channel.unary_stream(STREAM)
            assert [piece async for piece in streaming(b"small", timeout=20)] == [b"small"]
            go.set()
            ended = await asyncio.gather(*kept, return_exceptions=True)
            assert ended.count(b"done") == 3
    finally:
        await server.stop(0)
