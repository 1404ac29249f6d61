"""grpc.health.v1 for the platform, every service and every agent, by what the registry has seen."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from agentruntime.errors import NotFound, PermissionDenied
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from uapi_gateway import descriptors
from uapi_gateway.reflection import Visible, everyone
from uapi_gateway.registry import Registry

_Status = health_pb2.HealthCheckResponse


def serving_status(
    registry: Registry, name: str, *, pool_known: bool, seen: Callable[[str], bool] = lambda _agent: True
) -> int:
    """The ServingStatus of a name: "" is the platform, else a service, an agent or a worker.

    Args:
        registry: the agents.
        name: as in HealthCheckRequest.service.
        pool_known: the pool is connected.
        seen: says of an agent whether the caller may know of it.

    Raises:
        PermissionDenied: it may not, whether or not there is such an agent.
    """
    if name in (descriptors.POOL, descriptors.IMAGES, descriptors.SECRETS):
        return int(_Status.SERVING if pool_known else _Status.NOT_SERVING)
    if name == "" or name in descriptors.PLATFORM:
        return int(_Status.SERVING)
    # An agent that sleeps takes calls: the next one wakes it.
    target = registry.find(name)
    if "." not in name and not seen(target.agent.agent_id if target else name):
        raise PermissionDenied(f"you may not call agent '{name}', nor see it", reason="NOT_PERMITTED")
    if target:
        return int(_Status.SERVING if target.ready or target.agent.asleep else _Status.NOT_SERVING)
    serving = [agent for agent in registry.serving(name) if seen(agent.agent_id)]
    if not serving:
        return int(_Status.SERVICE_UNKNOWN)
    return int(_Status.SERVING if any(agent.ready or agent.asleep for agent in serving) else _Status.NOT_SERVING)


class HealthService(health_pb2_grpc.HealthServicer):
    """Check and Watch."""

    def __init__(self, registry: Registry, pool_known: Callable[[], bool], visible: Visible = everyone) -> None:
        self._registry = registry
        self._visible = visible
        self._pool_known = pool_known

    def _status(self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]) -> int:
        seen = self._visible(context)
        return serving_status(self._registry, request.service, pool_known=self._pool_known(), seen=seen)

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        found = self._status(request, context)
        if found == _Status.SERVICE_UNKNOWN:
            raise NotFound(f"no service or agent is named '{request.service}'")
        return _Status(status=found)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        changed = asyncio.Event()

        def wake(_agent_id: str) -> None:
            changed.set()

        self._registry.listeners.append(wake)
        last = None
        try:
            while True:
                found = self._status(request, context)
                if found != last:
                    yield _Status(status=found)
                    last = found
                await changed.wait()
                changed.clear()
        finally:
            self._registry.listeners.remove(wake)
