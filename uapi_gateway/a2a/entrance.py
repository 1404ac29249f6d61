"""Where A2A's calls come in, over HTTP and gRPC. Its SDK takes a second to import, so the first call does that."""

import asyncio
import importlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
from agentruntime.errors import InvalidArgument
from grpc import aio
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from uapi_gateway import descriptors
from uapi_gateway.a2a.core import CARD_PATH, Core
from uapi_gateway.access.checks import Checks, parsed
from uapi_gateway.access.demand import calling
from uapi_gateway.xds.routes import AGENT_HEADER

if TYPE_CHECKING:
    from uapi_gateway.a2a.surface import Surface

_PREFIX = f"/{descriptors.A2A}/"


class Entrance:
    """The surface, once somebody wants it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._lock = asyncio.Lock()
        self._surface: Surface | None = None

    async def surface(self) -> "Surface":
        async with self._lock:
            if self._surface is None:
                module = await asyncio.to_thread(importlib.import_module, "uapi_gateway.a2a.surface")
                self._surface = module.Surface(self._core)
            assert self._surface is not None
            return self._surface

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application."""
        surface = await self.surface()
        await surface.application(scope, receive, send)

    def routes(self) -> list[BaseRoute]:
        """What the HTTP port has of it."""
        paths = ("/agents/{agent}/a2a{rest:path}", "/agents/{agent}" + CARD_PATH, CARD_PATH)
        return [Route(path, self, include_in_schema=False) for path in paths]


class A2AHandler(grpc.GenericRpcHandler):
    """A2AService on the control socket. A call names its agent as its tenant, or in the metadata.

    Args:
        entrance: to the surface.
        checks: who may call which agent.
    """

    def __init__(self, entrance: Entrance, checks: Checks) -> None:
        self._entrance = entrance
        self._checks = checks

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        if not method.startswith(_PREFIX):
            return None
        streams = descriptors.A2A_METHODS.get(method.removeprefix(_PREFIX))
        if streams is None:
            return None
        make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        behaviour = (self._stream if streams else self._unary)(method.removeprefix(_PREFIX))
        # Requests are bytes until the SDK is there.
        return make(behaviour, response_serializer=lambda response: response.SerializeToString())

    def _unary(self, name: str) -> Any:
        async def call(request: bytes, context: aio.ServicerContext[Any, Any]) -> Any:
            behaviour, message = await self._admitted(name, request, context)
            return await behaviour(message, context)

        return call

    def _stream(self, name: str) -> Any:
        async def call(request: bytes, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            behaviour, message = await self._admitted(name, request, context)
            async for response in behaviour(message, context):
                yield response

        return call

    async def _admitted(self, name: str, request: bytes, context: aio.ServicerContext[Any, Any]) -> tuple[Any, Any]:
        """The behaviour for a call that may be made, and its request."""
        surface = await self._entrance.surface()
        method = surface.service.methods_by_name[name]
        message = parsed(method.input_type, request)
        agent = _named(message.tenant, context)
        checked = await self._checks.check(method, calling(agent), message, context)
        return surface.servicer(checked.caller, agent, name), message


def _named(tenant: str, context: aio.ServicerContext[Any, Any]) -> str:
    """The agent that a call is for."""
    said = next((str(value) for key, value in context.invocation_metadata() or () if key == AGENT_HEADER), "")
    if tenant and said and tenant != said:
        raise InvalidArgument(f"the request's tenant is '{tenant}', and {AGENT_HEADER} '{said}'; name one agent")
    if not (tenant or said):
        raise InvalidArgument(f"name the agent as the request's tenant, or in the metadata key {AGENT_HEADER}")
    return tenant or said
