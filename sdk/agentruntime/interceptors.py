"""What every server of the platform does around a call: take up the trace, encode errors, hide bugs."""

import inspect
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc import aio

from agentruntime import errors, log, status, trace

AioContext = aio.ServicerContext[Any, Any]
_log = log.get("agentruntime.server")


class ServerInterceptor(aio.ServerInterceptor):
    """Makes the caller's trace current, and turns what a handler raises into a status.

    An `AgentError` becomes its code with `google.rpc.ErrorInfo`. Any other exception becomes INTERNAL with a
    request id and no inner text; the log has the traceback under that id. Cancellation and `context.abort`
    pass untouched. Handlers are coroutines or async generators; a worker's admission makes plain ones so.
    """

    def __init__(self, check: Callable[[AioContext], None] | None = None) -> None:
        """`check` sees each call before its handler, and raises an error to refuse it."""
        self._check = check

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        header = next((str(v) for k, v in handler_call_details.invocation_metadata or () if k == trace.HEADER), None)
        kind = ("stream" if handler.request_streaming else "unary") + (
            "_stream" if handler.response_streaming else "_unary"
        )
        guarded = _guard(getattr(handler, kind), header, handler_call_details.method, self._check)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(guarded, handler.request_deserializer, handler.response_serializer)


def _guard(behaviour: Any, header: str | None, method: str, check: Callable[[AioContext], None] | None = None) -> Any:
    """The behaviour of a handler, in the form that it had, with the trace taken up and errors encoded."""
    if inspect.isasyncgenfunction(behaviour):

        async def async_stream(request: Any, context: AioContext) -> AsyncIterator[Any]:
            trace.enter(header)
            try:
                if check:
                    check(context)
                async for response in behaviour(request, context):
                    yield response
            except Exception as error:
                await abort(context, error, method)

        return async_stream

    async def async_call(request: Any, context: AioContext) -> Any:
        trace.enter(header)
        try:
            if check:
                check(context)
            return await behaviour(request, context)
        except Exception as error:
            await abort(context, error, method)

    return async_call


async def abort(context: AioContext, error: Exception, method: str) -> None:
    """Ends the call with the status of `error`; raises, as `context.abort` does."""
    if isinstance(error, aio.AbortError):
        raise error
    told = _tellable(error, method)
    await context.abort(status.code_of(told), told.message, _details(told))


def _details(error: errors.AgentError) -> tuple[tuple[str, str | bytes], ...]:
    details = (status.DETAILS_KEY, status.encode(error))
    return (details,) if error.begun else (details, (status.NOT_BEGUN_KEY, "1"))


def _tellable(error: Exception, method: str) -> errors.AgentError:
    """The error itself if it is one of ours, else one that hides it behind a request id."""
    if isinstance(error, errors.AgentError):
        return error
    request_id = secrets.token_hex(8)
    _log.error("unforeseen error", method=method, request_id=request_id, exc_info=error)
    return errors.Internal(f"internal error, request id {request_id}", metadata={"request_id": request_id})
