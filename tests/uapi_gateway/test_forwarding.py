"""What the relay keeps of a call, and the channels that calls share."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from agentruntime.errors import QueueFull
from grpc import aio

from tests.uapi_gateway.echo_service import echoing
from tests.uapi_gateway.stand_ins import generate, worker_process
from tests.waiting import eventually
from uapi_gateway.forwarding import MESSAGE_BYTES, Allowance, Kept, Lines
from uapi_gateway.registry import Endpoint


async def messages(*every: bytes) -> AsyncIterator[bytes]:
    for each in every:
        yield each


def test_nobody_holds_more_than_is_left_for_the_others() -> None:
    allowance = Allowance(90)
    assert not allowance.take("a", 46)
    assert allowance.take("a", 45)
    assert not allowance.take("a", 1)
    assert not allowance.take("b", 23)
    assert allowance.take("b", 22)
    allowance.give_back("a", 45)
    assert allowance.take("b", 23)
    assert allowance.held_bytes == 45


async def _next(attempt: AsyncIterator[bytes]) -> bytes | None:
    return await anext(attempt, None)


async def test_a_call_can_be_sent_again_as_far_as_it_was_read() -> None:
    allowance = Allowance(1000)
    kept = Kept(messages(b"1", b"2", b"3"), allowance, "a", 1000)
    first = aiter(kept)
    assert [await anext(first), await anext(first)] == [b"1", b"2"]
    assert kept.complete
    assert [each async for each in kept] == [b"1", b"2", b"3"]
    assert allowance.held_bytes == 3 * (1 + MESSAGE_BYTES)
    # The attempt before has nothing to say any more.
    assert [each async for each in first] == []
    kept.release()
    kept.release()
    assert allowance.held_bytes == 0


async def test_the_message_that_a_failed_attempt_waited_for_is_the_next_ones() -> None:
    said = asyncio.Event()

    async def later() -> AsyncIterator[bytes]:
        yield b"1"
        await said.wait()
        yield b"2"

    kept = Kept(later(), Allowance(1000), "a", 1000)
    first, second = aiter(kept), aiter(kept)
    assert await anext(first) == b"1"
    waiting = asyncio.create_task(_next(first))
    await asyncio.sleep(0)
    assert await anext(second) == b"1"
    again = asyncio.create_task(_next(second))
    said.set()
    assert await again == b"2"
    assert await waiting is None
    kept.close()


@pytest.mark.parametrize(("in_all", "longest"), [(1000, 2), (2, 1000)])
async def test_a_large_call_is_not_kept(in_all: int, longest: int) -> None:
    allowance = Allowance(in_all)
    kept = Kept(messages(b"1", b"23", b"4"), allowance, "a", longest)
    assert [each async for each in kept] == [b"1", b"23", b"4"]
    assert not kept.complete
    assert allowance.held_bytes == 0


async def test_the_request_of_a_unary_call_is_held_or_refused() -> None:
    allowance = Allowance(200)
    assert await Kept(messages(b"123"), allowance, "a", 3).only() == b"123"
    assert await Kept(messages(), allowance, "a", 3).only() is None
    with pytest.raises(QueueFull):
        await Kept(messages(b"456"), allowance, "a", 3).only()
    assert allowance.held_bytes == 3 + MESSAGE_BYTES


async def test_calls_share_a_channel_and_spread(tmp_path: Path) -> None:
    lines = Lines()
    endpoints = [Endpoint(f"unix:{tmp_path}/{n}.sock", ready=True, worker_id=str(n)) for n in (1, 2)]
    dead = Endpoint(f"unix:{tmp_path}/dead.sock", ready=True)
    async with contextlib.AsyncExitStack() as stack:
        for endpoint in endpoints:
            await stack.enter_async_context(echoing(endpoint.address, endpoint.worker_id))
        leases = [await stack.enter_async_context(lines.to_any([dead, *endpoints])) for _ in range(10)]
        assert len({lease.channel for lease in leases if lease}) == 2
        assert [lines.calls(endpoint.dialled) for endpoint in endpoints] == [5, 5]
        async with lines.to_any([dead]) as none:
            assert none is None
        assert await asyncio.gather(*(generate(lease.channel, "x") for lease in leases if lease))
    assert [lines.calls(endpoint.dialled) for endpoint in endpoints] == [0, 0]
    await lines.close()


async def test_a_channel_whose_only_call_broke_it_is_not_used_again(tmp_path: Path) -> None:
    lines = Lines()
    endpoint = Endpoint(f"unix:{tmp_path}/1.sock", ready=True)
    with worker_process(endpoint.address, "first") as worker:
        async with lines.to_any([endpoint]) as lease:
            assert lease is not None
            call = asyncio.create_task(generate(lease.channel, "hang", timeout_s=5))
            await eventually(lambda: lease.channel.get_state() is grpc.ChannelConnectivity.READY)
            worker.kill()
            with pytest.raises(aio.AioRpcError):
                await call

    async def refused() -> bool:
        async with lines.to_any([endpoint]) as lease:
            return lease is None

    # The call hears of its end before the channel does.
    await eventually(refused, timeout_s=1)
    await lines.close()


async def test_a_channel_that_broke_is_not_used_again(tmp_path: Path) -> None:
    lines = Lines()
    endpoint = Endpoint(f"unix:{tmp_path}/1.sock", ready=True)
    channels = []
    for name in ("first", "second"):
        async with echoing(endpoint.address, name):
            async with lines.to_any([endpoint]) as lease:
                assert lease is not None
                channels.append(lease.channel)
                assert await generate(lease.channel, "x", timeout_s=2) == f"{name}: x"
            async with lines.to_any([endpoint]) as again:
                assert again is not None
                assert again.channel is lease.channel

        async def gone() -> bool:
            async with lines.to_any([endpoint]) as lease:
                return lease is None

        await eventually(gone)
    assert channels[0] is not channels[1]
    await lines.close()
