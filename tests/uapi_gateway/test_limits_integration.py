"""What callers may take of a running gateway: calls per second, connections, and time."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import access_pb2, access_pb2_grpc
from agentruntime.agent import Agent
from agentruntime.home import Home
from agentruntime.launch import WorkerSpec
from grpc import aio

from agent_worker.lag import LagSelector
from agent_worker.loader import LoadedAgent
from agent_worker.server import WorkerServer
from tests.hostile import frames
from tests.uapi_gateway.echo_service import echoing
from tests.uapi_gateway.pool_service import PoolStandIn, deployment
from tests.uapi_gateway.stand_ins import Gateway, generate
from tests.waiting import eventually

pytestmark = pytest.mark.integration
_RATE, _CONNECTIONS = 20, 8


class Patient(Agent):
    async def generate(self, prompt: str, *, temperature: float, max_tokens: int) -> AsyncIterator[str]:
        if prompt == "hang":
            await asyncio.sleep(3600)
        yield prompt


@contextlib.asynccontextmanager
async def worker(address: str, name: str) -> AsyncIterator[None]:
    """One of ours: they count the calls in flight."""
    server = WorkerServer(WorkerSpec(name, name.rpartition("-")[0], 1, 1), LagSelector())
    await server.start(LoadedAgent(Patient, (), (), b""), address, name)
    try:
        yield
    finally:
        await server._server.stop(0)
        server._threads.shutdown()


@pytest_asyncio.fixture
async def limited(home: Home) -> AsyncIterator[Gateway]:
    """A gateway where every caller may make 20 calls per second, and 8 connections are all that there may be."""
    pool, gateway = PoolStandIn(), Gateway(home)
    address, own = f"unix:{home.root}/w.sock", f"unix:{home.root}/own.sock"
    async with echoing(address, "a-01"), worker(own, "b-01"), pool.serving(home):
        pool.put(deployment("a", {"a-01": address}))
        pool.put(deployment("b", {"b-01": own}))
        try:
            await gateway.start(
                UAPI_GATEWAY_RATE_PER_CALLER=f"{_RATE}/s", UAPI_GATEWAY_MAX_CONNECTIONS=f"{_CONNECTIONS}"
            )
            yield gateway
        finally:
            gateway.stop()


async def outcome(channel: aio.Channel, *metadata: tuple[str, str], agent: str = "a") -> str:
    """ "OK", or the reason of the refusal."""
    try:
        await generate(channel, "hello", *metadata, agent=agent, timeout_s=30)
    except aio.AioRpcError as error:
        return status.decode(error).reason
    return "OK"


async def test_limits_of_a_gateway(limited: Gateway) -> None:
    async with limited.channel() as tcp, limited.channel(unix=True) as own:

        async def answered() -> bool:
            return {await outcome(own, agent=agent) for agent in ("a", "b")} == {"OK"}

        await eventually(answered)
        await _rates(tcp, own)
        await _keys(tcp, own)
    await _connections(limited)
    await _silence(limited)


async def _rates(tcp: aio.Channel, own: aio.Channel) -> None:
    outcomes = await asyncio.gather(*(outcome(tcp) for _ in range(10 * _RATE)))
    assert set(outcomes) == {"OK", "RATE_LIMITED"}
    assert outcomes.count("OK") >= _RATE
    # The platform's own user has no limit.
    assert set(await asyncio.gather(*(outcome(own) for _ in range(10 * _RATE)))) == {"OK"}
    with pytest.raises(aio.AioRpcError) as caught:
        await asyncio.gather(*(generate(tcp, "hello", agent="a", timeout_s=30) for _ in range(10 * _RATE)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert isinstance(status.decode(caught.value), errors.RateLimited)


async def _keys(tcp: aio.Channel, own: aio.Channel) -> None:
    """A key's own rate counts, be it lower or higher than everybody's, and so do its calls in flight."""
    wanted: dict[str, dict[str, Any]] = {
        "seldom": {"rate_per_second": 1 / 3600},
        "often": {"rate_per_second": 1000.0},
        "few": {"rate_per_second": 1000.0, "max_concurrency": 2},
    }
    credentials = {}
    for name, limits in wanted.items():
        request = access_pb2.CreateKeyRequest(name=name, agents=["*"], **limits)
        made = await access_pb2_grpc.AccessServiceStub(own).CreateKey(request, timeout=30)
        credentials[name] = ("authorization", f"Bearer {made.secret}")
    assert [await outcome(tcp, credentials["seldom"]) for _ in range(3)] == ["OK", "RATE_LIMITED", "RATE_LIMITED"]
    many = await asyncio.gather(*(outcome(tcp, credentials["often"]) for _ in range(10 * _RATE)))
    assert set(many) == {"OK"}

    async def too_many() -> bool:
        return await outcome(tcp, credentials["few"], agent="b") == "TOO_MANY_CALLS"

    held = [asyncio.ensure_future(generate(tcp, "hang", credentials["few"], agent="b", timeout_s=60)) for _ in "12"]
    await eventually(too_many)
    # Others are not counted with it.
    assert await outcome(tcp, credentials["often"], agent="b") == "OK"
    held.pop().cancel()

    async def one_more() -> bool:
        return not await too_many()

    await eventually(one_more)
    held.pop().cancel()


async def _connections(gateway: Gateway) -> None:
    """One more than there may be is closed, and that of the platform's own user is not."""
    with contextlib.ExitStack() as stack:
        opened = 0
        while await _taken(stack.enter_context(_connected(gateway))):
            opened += 1
        # The client of the calls before may still have its own.
        assert _CONNECTIONS - 2 <= opened <= _CONNECTIONS
        async with gateway.channel(unix=True) as own:
            assert await outcome(own) == "OK"


async def _taken(connection: socket.socket) -> bool:
    """Whether it may be there."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(frames.start())
        return await asyncio.to_thread(connection.recv, 1) != b""
    return False


async def _silence(gateway: Gateway) -> None:
    """A connection that says nothing is closed after its ten seconds."""

    async def closed() -> bool:
        started = asyncio.get_running_loop().time()
        with contextlib.suppress(ConnectionError), _connected(gateway) as each:
            said = await asyncio.to_thread(each.recv, 1)
            # At once, while Envoy still counts those that have just ended.
            return said == b"" and asyncio.get_running_loop().time() - started > 5
        return False

    await eventually(closed, timeout_s=40)


def _connected(gateway: Gateway) -> socket.socket:
    host, _, port = gateway.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)
