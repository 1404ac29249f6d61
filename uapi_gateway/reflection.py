"""Server reflection, v1 and v1alpha, over the platform's protos and those of all agents, as they come and go.

Both versions have the same messages under two names (https://github.com/grpc/grpc/blob/master/doc/server-reflection.md).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from agentruntime.errors import DeadlineExceeded
from grpc import aio
from grpc_reflection.v1alpha import reflection_pb2 as proto

from uapi_gateway import descriptors
from uapi_gateway.descriptors import Catalogue
from uapi_gateway.registry import Registry

# Put together for callers that see different agents.
_MOST_CATALOGUES = 16
# Streams at a time, and for how long each: a part of a message that never ends has room in the gateway.
_STREAMS, _STREAM_S = 16, 60.0
Visible = Callable[[Any], Callable[[str], bool]]


def everyone(_context: Any) -> Callable[[str], bool]:
    """Every caller sees every agent."""
    return lambda _agent: True


def answer(catalogue: Catalogue, request: proto.ServerReflectionRequest) -> proto.ServerReflectionResponse:
    """The response to one request, without the fields that repeat the request."""
    kind = request.WhichOneof("message_request")
    if kind == "list_services":
        services = [proto.ServiceResponse(name=name) for name in catalogue.services]
        return proto.ServerReflectionResponse(list_services_response=proto.ListServiceResponse(service=services))
    if kind == "all_extension_numbers_of_type":
        name = request.all_extension_numbers_of_type
        if name not in catalogue.symbols:
            return _unknown(name)
        numbers = sorted(number for extended, number in catalogue.extensions if extended == name)
        return proto.ServerReflectionResponse(
            all_extension_numbers_response=proto.ExtensionNumberResponse(
                base_type_name=name, extension_number=numbers
            )
        )
    if kind == "file_by_filename":
        file, asked = request.file_by_filename, request.file_by_filename
    elif kind == "file_containing_symbol":
        asked = request.file_containing_symbol
        file = catalogue.symbols.get(asked.removeprefix("."), "")
    elif kind == "file_containing_extension":
        wanted = request.file_containing_extension
        asked = f"extension {wanted.extension_number} of {wanted.containing_type}"
        file = catalogue.extensions.get((wanted.containing_type, wanted.extension_number), "")
    else:
        return _error(grpc.StatusCode.INVALID_ARGUMENT, "the request asks nothing")
    files = catalogue.closure(file)
    if not files:
        return _unknown(asked)
    return proto.ServerReflectionResponse(
        file_descriptor_response=proto.FileDescriptorResponse(file_descriptor_proto=files)
    )


def _unknown(name: str) -> proto.ServerReflectionResponse:
    return _error(grpc.StatusCode.NOT_FOUND, f"{name} is not known here")


def _error(code: grpc.StatusCode, message: str) -> proto.ServerReflectionResponse:
    return proto.ServerReflectionResponse(
        error_response=proto.ErrorResponse(error_code=code.value[0], error_message=message)
    )


class ReflectionService:
    """Serves both versions; the catalogue is put together anew when agents have changed and somebody asks.

    Args:
        registry: the agents.
        visible: says of a call which agents its caller may see.
    """

    def __init__(self, registry: Registry, visible: Visible = everyone) -> None:
        self._streams = asyncio.Semaphore(_STREAMS)
        self._registry = registry
        self._visible = visible
        # By the agents in it.
        self._catalogues: dict[tuple[str, ...], Catalogue] = {}
        registry.listeners.append(self._forget)

    def _forget(self, _agent_id: str) -> None:
        self._catalogues.clear()

    def catalogue(self, seen: Callable[[str], bool] = lambda _agent: True) -> Catalogue:
        agents = [agent for agent in self._registry.agents() if seen(agent.agent_id)]
        names = tuple(agent.agent_id for agent in agents)
        if names not in self._catalogues:
            if len(self._catalogues) >= _MOST_CATALOGUES:
                self._catalogues.clear()
            services = {service for agent in agents for service in agent.services} | descriptors.PLATFORM
            # Reflection's other version has no file of its own.
            sets = {"platform": descriptors.platform_set(), descriptors.A2A: descriptors.a2a_set()}
            sets |= {agent.agent_id: agent.descriptors for agent in agents}
            self._catalogues[names] = descriptors.catalogue(sets, services)
        return self._catalogues[names]

    async def _answer_all(
        self, requests: AsyncIterator[proto.ServerReflectionRequest], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[proto.ServerReflectionResponse]:
        seen = self._visible(context)
        try:
            async with self._streams, asyncio.timeout(_STREAM_S):
                async for request in requests:
                    response = answer(self.catalogue(seen), request)
                    response.valid_host = request.host
                    response.original_request.CopyFrom(request)
                    yield response
        except TimeoutError:
            raise DeadlineExceeded(f"a stream of reflection lasts {_STREAM_S:g} s at most; begin another") from None

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a server must be given."""
        method = grpc.stream_stream_rpc_method_handler(
            self._answer_all,
            request_deserializer=proto.ServerReflectionRequest.FromString,
            response_serializer=proto.ServerReflectionResponse.SerializeToString,
        )
        return [
            grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": method})
            for service in descriptors.REFLECTION
        ]
