"""A relay in the test's own process, with a pool beside it, and calls straight to it: no Envoy in between."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from agentruntime.home import Home
from agentruntime.interceptors import ServerInterceptor
from grpc import aio

from tests.uapi_gateway.pool_service import PoolStandIn, deployment
from tests.uapi_gateway.stand_ins import generate
from uapi_gateway.deployments import from_deployment
from uapi_gateway.ejections import Ejections
from uapi_gateway.load import Load
from uapi_gateway.pool_watch import pool_channel
from uapi_gateway.registry import Registry
from uapi_gateway.relay import LONGEST_REQUEST_BYTES, Relay, RelayHandler
from uapi_gateway.settings import Settings


@dataclass
class RelayServer:
    """What a test needs to drive a relay."""

    relay: Relay
    registry: Registry
    load: Load
    ejections: Ejections
    pool: PoolStandIn
    channel: aio.Channel

    def put(self, agent: str, workers: dict[str, str], **changes: Any) -> None:
        """Has pool and registry know an agent; its workers are ready."""
        made = deployment(agent, workers, **changes)
        self.pool.deployments[agent] = made
        self.registry.put_pool_agent(from_deployment(made))

    def awake(self, agent: str, workers: dict[str, str], **changes: Any) -> None:
        """Only the pool knows yet that an agent is awake."""
        self.pool.deployments[agent] = deployment(agent, workers, **changes)

    async def call(self, prompt: str, agent: str, *metadata: tuple[str, str], timeout_s: float | None = 5.0) -> str:
        return await generate(self.channel, prompt, *metadata, agent=agent, timeout_s=timeout_s)


@contextlib.asynccontextmanager
async def relaying(home: Home, **settings: Any) -> AsyncIterator[RelayServer]:
    """A relay whose pool does not run yet: `pool.serving(home)` starts it."""
    registry = Registry()
    load, ejections = Load(registry), Ejections(registry)
    to_pool = pool_channel(home.pool_socket)
    relay = Relay(registry, to_pool, load, ejections, settings=Settings(root=home.root, **settings))
    server = aio.server(
        interceptors=[ServerInterceptor()], options=[("grpc.max_receive_message_length", LONGEST_REQUEST_BYTES)]
    )
    server.add_generic_rpc_handlers((RelayHandler(relay),))
    server.add_insecure_port(f"unix:{home.run}/relay.sock")
    await server.start()
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with aio.insecure_channel(f"unix:{home.run}/relay.sock", options=options) as channel:
        try:
            yield RelayServer(relay, registry, load, ejections, PoolStandIn(), channel)
        finally:
            await server.stop(0)
            await relay.close()
            await to_pool.close()
