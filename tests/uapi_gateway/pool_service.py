"""A pool for the gateway's tests: it runs nothing, and says what the test tells it to say."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from agentruntime.calls import SOME_AGENTS_KEY
from agentruntime.home import Home
from agentruntime.interceptors import ServerInterceptor
from grpc import aio

from tests.uapi_gateway.echo_service import SERVICE
from tests.uapi_gateway.stand_ins import Gateway, generate, private_home
from uapi_gateway.descriptors import platform_subset


def deployment(agent: str, workers: dict[str, str], **changes: Any) -> pool.Deployment:
    """A deployment whose workers, by id and address, are ready."""
    fields = {
        "agent": agent,
        "image": f"{agent}:latest",
        "replicas": len(workers),
        "services": [SERVICE],
        "descriptors": platform_subset([SERVICE]),
        "idempotent": True,
        "workers": [
            pool.Worker(worker_id=worker_id, agent=agent, state=pool.WORKER_STATE_READY, address=address, pid=4242)
            for worker_id, address in workers.items()
        ],
    }
    return pool.Deployment(**{**fields, **changes})


class PoolStandIn:
    """Answers what the gateway asks of a pool; the test says what runs."""

    def __init__(self) -> None:
        self.deployments: dict[str, pool.Deployment] = {}
        # What the gateway asked to wake, and what happens then: by default the test has put what is said already.
        self.woken: list[str] = []
        # Whether those who asked for it were said to be operators of some agents alone.
        self.of_some: list[bool] = []
        self.on_wake: Callable[[str], Awaitable[None]] | None = None
        # What the gateway has reported, in its order.
        self.reports: list[pool.ReportLoadRequest] = []
        # The changes that the gateway says it routes by, in its order.
        self.acknowledged: list[int] = []
        self.changes = 0
        self._queues: list[asyncio.Queue[pool.WatchDeploymentsResponse]] = []

    def put(self, changed: pool.Deployment) -> None:
        self.deployments[changed.agent] = changed
        self._tell(pool.WatchDeploymentsResponse(changed=changed))

    def remove(self, agent: str) -> None:
        del self.deployments[agent]
        self._tell(pool.WatchDeploymentsResponse(removed=agent))

    def _tell(self, event: pool.WatchDeploymentsResponse) -> None:
        self.changes += 1
        event.change = self.changes
        for queue in self._queues:
            queue.put_nowait(event)

    async def WatchDeployments(
        self, request: pool.WatchDeploymentsRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pool.WatchDeploymentsResponse]:
        queue: asyncio.Queue[pool.WatchDeploymentsResponse] = asyncio.Queue()
        self._queues.append(queue)
        try:
            for known in list(self.deployments.values()):
                yield pool.WatchDeploymentsResponse(changed=known)
            yield pool.WatchDeploymentsResponse(synced=True, change=0)
            while True:
                yield await queue.get()
        finally:
            self._queues.remove(queue)

    async def AcknowledgeDeployments(
        self, request: pool.AcknowledgeDeploymentsRequest, context: aio.ServicerContext[Any, Any]
    ) -> pool.AcknowledgeDeploymentsResponse:
        assert request.router
        self.acknowledged.append(request.change)
        return pool.AcknowledgeDeploymentsResponse()

    async def WakeAgent(
        self, request: pool.WakeAgentRequest, context: aio.ServicerContext[Any, Any]
    ) -> pool.WakeAgentResponse:
        self.woken.append(request.agent)
        self.of_some.append(any(key == SOME_AGENTS_KEY for key, _ in context.invocation_metadata() or ()))
        if self.on_wake is not None:
            await self.on_wake(request.agent)
        return pool.WakeAgentResponse(deployment=self.deployments[request.agent])

    async def RunAgent(
        self, request: pool.RunAgentRequest, context: aio.ServicerContext[Any, Any]
    ) -> pool.RunAgentResponse:
        """Runs an agent without workers; image "none" there is not."""
        if request.image == "none":
            raise errors.ImageNotFound("no image 'none'")
        made = deployment(request.agent, {}, asleep=True, settings=request.settings)
        # The news of it comes a little later than the answer.
        asyncio.get_running_loop().call_later(0.05, self.put, made)
        return pool.RunAgentResponse(deployment=made)

    async def ReportLoad(
        self, requests: AsyncIterator[pool.ReportLoadRequest], context: aio.ServicerContext[Any, Any]
    ) -> pool.ReportLoadResponse:
        async for request in requests:
            self.reports.append(request)
        return pool.ReportLoadResponse()

    def load(self, agent: str) -> pool.AgentLoad:
        """What the last report says of an agent."""
        loads = self.reports[-1].loads if self.reports else ()
        return next((each for each in loads if each.agent == agent), pool.AgentLoad(agent=agent))

    async def ListWorkers(
        self, request: pool.ListWorkersRequest, context: aio.ServicerContext[Any, Any]
    ) -> pool.ListWorkersResponse:
        return pool.ListWorkersResponse(workers=[w for d in self.deployments.values() for w in d.workers])

    async def GetNode(
        self, request: pool.GetNodeRequest, context: aio.ServicerContext[Any, Any]
    ) -> pool.GetNodeResponse:
        capacity = pool.NodeResources(cpu_millis=2000, memory_bytes=10**9)
        return pool.GetNodeResponse(capacity=capacity, pid=os.getpid(), version="stand-in")

    def _handlers(self) -> grpc.GenericRpcHandler:
        handlers: dict[str, Any] = {
            "WatchDeployments": grpc.unary_stream_rpc_method_handler(
                self.WatchDeployments,
                pool.WatchDeploymentsRequest.FromString,
                pool.WatchDeploymentsResponse.SerializeToString,
            ),
            "AcknowledgeDeployments": grpc.unary_unary_rpc_method_handler(
                self.AcknowledgeDeployments,
                pool.AcknowledgeDeploymentsRequest.FromString,
                pool.AcknowledgeDeploymentsResponse.SerializeToString,
            ),
            "WakeAgent": grpc.unary_unary_rpc_method_handler(
                self.WakeAgent, pool.WakeAgentRequest.FromString, pool.WakeAgentResponse.SerializeToString
            ),
            "RunAgent": grpc.unary_unary_rpc_method_handler(
                self.RunAgent, pool.RunAgentRequest.FromString, pool.RunAgentResponse.SerializeToString
            ),
            "ReportLoad": grpc.stream_unary_rpc_method_handler(
                self.ReportLoad, pool.ReportLoadRequest.FromString, pool.ReportLoadResponse.SerializeToString
            ),
            "ListWorkers": grpc.unary_unary_rpc_method_handler(
                self.ListWorkers, pool.ListWorkersRequest.FromString, pool.ListWorkersResponse.SerializeToString
            ),
            "GetNode": grpc.unary_unary_rpc_method_handler(
                self.GetNode, pool.GetNodeRequest.FromString, pool.GetNodeResponse.SerializeToString
            ),
        }
        return grpc.method_handlers_generic_handler("uapi.v1.AgentPool", handlers)

    @contextlib.asynccontextmanager
    async def serving(self, home: Home) -> AsyncIterator[None]:
        server = aio.server(interceptors=[ServerInterceptor()])
        server.add_generic_rpc_handlers((self._handlers(),))
        server.add_insecure_port(f"unix:{home.pool_socket}")
        await server.start()
        try:
            yield
        finally:
            await server.stop(0)


@contextlib.asynccontextmanager
async def running(pool: PoolStandIn, **environment: str) -> AsyncIterator[Gateway]:
    """A gateway beside a pool, with a runtime directory of its own."""
    with private_home() as home:
        gateway = Gateway(home)
        async with pool.serving(home):
            try:
                await gateway.start(**environment)
                yield gateway
            finally:
                gateway.stop()


async def answered(channel: aio.Channel, agent: str) -> bool:
    """Whether a call to an agent goes well now."""
    try:
        return bool(await generate(channel, "x", agent=agent, timeout_s=1))
    except aio.AioRpcError:
        return False
