"""What every server of the platform does around a call: take up the trace, encode errors, hide bugs."""

import inspect
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NoReturn

import grpc
from grpc import aio

from agentruntime import errors, log, status, trace

AioContext = aio.ServicerContext[Any, Any]
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
        header = next((str(v) for k, v in handler_call_details.invocation_metadata or () if k == trace.HEADER), None)
        kind = ("stream" if handler.request_streaming else "unary") + (
            "_stream" if handler.response_streaming else "_unary"
        )
        guarded = _guard(getattr(handler, kind), header, handler_call_details.method, handler.response_streaming)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(guarded, handler.request_deserializer, handler.response_serializer)


def _guard(behaviour: Any, header: str | None, method: str, streams: bool) -> Any:
    """The behaviour of a handler with the trace taken up and errors encoded.

    The result has the form of what it wraps (async generator, coroutine, plain function), because grpc.aio
    tells by the form whether to run it in its thread pool.
    """
    if inspect.isasyncgenfunction(behaviour):

        async def async_stream(request: Any, context: AioContext) -> AsyncIterator[Any]:
            trace.enter(header)
            try:
                async for response in behaviour(request, context):
                    yield response
            except Exception as error:
                await abort(context, error, method)

        return async_stream

    if inspect.iscoroutinefunction(behaviour):

        async def async_call(request: Any, context: AioContext) -> Any:
            trace.enter(header)
            try:
                return await behaviour(request, context)
            except Exception as error:
                await abort(context, error, method)

        return async_call

    def call(request: Any, context: grpc.ServicerContext) -> Any:
        trace.enter(header)
        try:
            return behaviour(request, context)
        except aio.AbortError:
            raise
        except Exception as error:
            told = _tellable(error, method)
            context.set_trailing_metadata(_details(told))
            context.abort(status.code_of(told), told.message)

    def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        trace.enter(header)
        try:
            yield from behaviour(request, _StreamContext(context))
        except _AbortedError as aborted:
            aborted.apply(context)
        except Exception as error:
            told = _tellable(error, method)
            _AbortedError(status.code_of(told), told.message, _details(told)).apply(context)

    return stream if streams else call


class _AbortedError(Exception):
    """A handler's `abort`, on its way to the end of its stream."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing_metadata: Any = ()) -> None:
        super().__init__(details)
        self._status = (code, details, trailing_metadata)

    def apply(self, context: grpc.ServicerContext) -> None:
        code, details, trailing_metadata = self._status
        context.set_code(code)
        context.set_details(details)
        if trailing_metadata:
            context.set_trailing_metadata(trailing_metadata)


class _StreamContext:
    """The context of a stream that runs in a thread, with an `abort` that works there.

    In grpc.aio 1.85 the status of an abort from a thread, after a message, is sometimes never sent; a status
    that was set before the stream ends always is.
    """

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any = ()) -> NoReturn:
        raise _AbortedError(code, details, trailing_metadata)


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
