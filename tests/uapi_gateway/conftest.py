"""One running gateway with a pool beside it, for the tests that do not break it."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from agentruntime.home import Home
from grpc import aio

from tests.uapi_gateway.echo_service import echoing
from tests.uapi_gateway.pool_service import PoolStandIn, deployment
from tests.uapi_gateway.stand_ins import Gateway, generate, private_home
from tests.waiting import eventually


class Platform:
    """A gateway and what stands beside it."""

    def __init__(self, gateway: Gateway, pool: PoolStandIn, tmp: Path) -> None:
        self.gateway = gateway
        self.pool = pool
        self.tmp = tmp
        self.home = gateway.home
        self.tcp = gateway.channel()
        self.unix = gateway.channel(unix=True)
        self.envoy_pid = gateway.envoy_pid

    async def routed(self, agent: str) -> None:
        """Waits until calls reach an agent."""

        async def answers() -> bool:
            try:
                return bool(await generate(self.unix, "hello", agent=agent))
            except aio.AioRpcError:
                return False

        await eventually(answers)


@pytest.fixture
def home() -> Iterator[Home]:
    """A runtime directory for one test."""
    with private_home() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Agents alpha (workers alpha-01 and alpha-02) and beta (beta-01), both of TextGenerationService."""
    tmp = tmp_path_factory.mktemp("gw")
    pool = PoolStandIn()
    workers = {
        agent: {f"{agent}-{n:02d}": f"unix:{tmp}/{agent}-{n:02d}.sock" for n in range(1, count + 1)}
        for agent, count in (("alpha", 2), ("beta", 1))
    }
    async with contextlib.AsyncExitStack() as stack:
        home = stack.enter_context(private_home())
        gateway = Gateway(home)
        for agent, by_id in workers.items():
            for worker_id, address in by_id.items():
                await stack.enter_async_context(echoing(address, worker_id))
            pool.put(deployment(agent, by_id))
        await stack.enter_async_context(pool.serving(home))
        try:
            await gateway.start(UAPI_GATEWAY_HEALTH_INTERVAL_S="0.2", UAPI_GATEWAY_RELAY_WAIT_S="2")
            platform = Platform(gateway, pool, tmp)
            for agent in workers:
                await platform.routed(agent)
            yield platform
            await platform.tcp.close()
            await platform.unix.close()
        finally:
            gateway.stop()
