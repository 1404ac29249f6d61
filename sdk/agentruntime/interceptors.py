"""What every server of the platform does around a call: take up the trace, encode errors, hide bugs."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc import aio

from agentruntime import errors, log, status, trace

_log = log.get("agentruntime.server")


class ServerInterceptor(aio.ServerInterceptor):
    """Makes the caller's trace current, and turns what a handler raises into a status.

    An `AgentError` becomes its code with `google.rpc.ErrorInfo`. Any other exception becomes INTERNAL with a
    request id and no inner text; the log has the traceback under that id. Cancellation and `context.abort`
    pass untouched.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        header = next((str(v) for k, v in handler_call_details.invocation_metadata or () if k == trace.HEADER), None)
        kind = ("stream" if handler.request_streaming else "unary") + (
            "_stream" if handler.response_streaming else "_unary"
        )
        behaviour = getattr(handler, kind)

        async def unary(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            trace.enter(header)
            try:
                return await behaviour(request, context)
            except Exception as error:
                await abort(context, error, method)

        async def stream(request: Any, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            trace.enter(header)
            try:
                async for response in behaviour(request, context):
                    yield response
            except Exception as error:
                await abort(context, error, method)

        wrapped = stream if handler.response_streaming else unary
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(wrapped, handler.request_deserializer, handler.response_serializer)


async def abort(context: aio.ServicerContext[Any, Any], error: Exception, method: str) -> None:
    """Ends the call with the status of `error`; raises, as `context.abort` does."""
    if isinstance(error, aio.AbortError):
        raise error
    if not isinstance(error, errors.AgentError):
        request_id = secrets.token_hex(8)
        _log.error("unforeseen error", method=method, request_id=request_id, exc_info=error)
        error = errors.Internal(f"internal error, request id {request_id}", metadata={"request_id": request_id})
    await context.abort(
        status.code_of(error), error.message, trailing_metadata=((status.DETAILS_KEY, status.encode(error)),)
    )
