"""Stands before the gateway's own services: who may call which method, and what of its answer a caller sees."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from agentruntime.errors import AgentError
from google.protobuf.descriptor import MethodDescriptor
from grpc import aio

from uapi_gateway.access.checks import Checks
from uapi_gateway.access.demand import OWN_NEEDS, Need


class Guard(aio.ServerInterceptor):
    """Checks the methods of `OWN_NEEDS`; others look by themselves."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        found = OWN_NEEDS.get(handler_call_details.method)
        if handler is None or found is None:
            return handler
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(handler.unary_stream, *found), handler.request_deserializer, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(handler.unary_unary, *found), handler.request_deserializer, handler.response_serializer
        )

    def _unary(self, behaviour: Any, method: MethodDescriptor, need: Need) -> Any:
        async def guarded(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            checked = await self._checks.check(method, need, request, context)
            try:
                return self._checks.shown(checked, await behaviour(request, context))
            except AgentError as error:
                await self._checks.failed(checked, error)
                raise

        return guarded

    def _stream(self, behaviour: Any, method: MethodDescriptor, need: Need) -> Any:
        async def guarded(request: Any, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            checked = await self._checks.check(method, need, request, context)
            async for answer in behaviour(request, context):
                if (shown := self._checks.shown(checked, answer)) is not None:
                    yield shown

        return guarded
