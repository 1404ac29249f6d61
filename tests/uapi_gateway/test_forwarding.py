"""What the relay keeps of a call, and the channels that calls share."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agentruntime.errors import QueueFull

from tests.uapi_gateway.echo_service import echoing
from tests.uapi_gateway.stand_ins import generate
from tests.waiting import eventually
from uapi_gateway.forwarding import Allowance, Kept, Lines
from uapi_gateway.registry import Endpoint


async def messages(*every: bytes) -> AsyncIterator[bytes]:
    for each in every:
        yield each


async def test_a_call_can_be_sent_again_as_far_as_it_was_read() -> None:
    allowance = Allowance(100)
    kept = Kept(messages(b"1", b"2", b"3"), allowance, 10)
    first = aiter(kept)
    assert [await anext(first), await anext(first)] == [b"1", b"2"]
    assert kept.complete
    assert [each async for each in kept] == [b"1", b"2", b"3"]
    assert allowance.held_bytes == 3
    kept.release()
    kept.release()
    assert allowance.held_bytes == 0


@pytest.mark.parametrize(("in_all", "longest"), [(100, 2), (2, 100)])
async def test_a_large_call_is_not_kept(in_all: int, longest: int) -> None:
    allowance = Allowance(in_all)
    kept = Kept(messages(b"1", b"23", b"4"), allowance, longest)
    assert [each async for each in kept] == [b"1", b"23", b"4"]
    assert not kept.complete
    assert allowance.held_bytes == 0


async def test_the_request_of_a_unary_call_is_held_or_refused() -> None:
    allowance = Allowance(5)
    assert await Kept(messages(b"123"), allowance, 10).only() == b"123"
    assert await Kept(messages(), allowance, 10).only() is None
    with pytest.raises(QueueFull):
        await Kept(messages(b"456"), allowance, 10).only()
    assert allowance.held_bytes == 3


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
