"""One caller's calls in flight leave room for others, and all of theirs for this user."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentruntime import status
from agentruntime.errors import TooManyCalls
from agentruntime.interceptors import ServerInterceptor
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.waiting import eventually
from uapi_gateway.access.shares import InFlight, Shares
from uapi_gateway.health_service import HealthService
from uapi_gateway.registry import Registry

_WATCHED = health_pb2.HealthCheckRequest()


@pytest.fixture
async def health(tmp_path: Path) -> AsyncIterator[Any]:
    server = aio.server(interceptors=[ServerInterceptor(), Shares(InFlight(each=2, all_=3))])
    health_pb2_grpc.add_HealthServicer_to_server(HealthService(Registry(), lambda: True), server)
    server.add_insecure_port(f"unix:{tmp_path}/s")
    await server.start()
    async with aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
        yield health_pb2_grpc.HealthStub(channel)
    await server.stop(0)


def _by(principal: str) -> tuple[tuple[str, str], ...]:
    return (("x-uapi-principal", principal),) if principal else ()


async def test_a_principal_has_its_share_and_local_is_always_served(health: Any) -> None:
    held = [health.Watch(_WATCHED, metadata=_by(who)) for who in ("key:a", "key:a", "key:b")]
    for call in held:
        await call.read()

    async def refused(who: str) -> str:
        with pytest.raises(aio.AioRpcError) as caught:
            await health.Check(_WATCHED, metadata=_by(who))
        error = status.decode(caught.value)
        assert isinstance(error, TooManyCalls)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        return error.message

    assert "key:a has 2 calls in flight" in await refused("key:a")
    assert "the gateway has 3 calls in flight" in await refused("key:c")
    for who in ("", "local"):
        for _ in range(5):
            assert await health.Check(_WATCHED, metadata=_by(who))
    held[0].cancel()

    async def served() -> bool:
        try:
            await health.Check(_WATCHED, metadata=_by("key:a"))
        except aio.AioRpcError:
            return False
        return True

    await eventually(served)
    for call in held[1:]:
        call.cancel()
