"""Bounds how many requests of the APIs each caller has in flight: streams last, and bodies are held."""

from agentruntime import status
from agentruntime.errors import AgentError
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from uapi_gateway.a2a.refusals import refusal as of_a2a
from uapi_gateway.access.callers import principal_of
from uapi_gateway.access.shares import InFlight
from uapi_gateway.http.codes import http_status
from uapi_gateway.http.openai.refusals import response as of_openai


class HttpShares:
    """The ASGI middleware.

    Args:
        in_flight: counts them, with the calls over gRPC.
    """

    def __init__(self, app: ASGIApp, in_flight: InFlight) -> None:
        self._app = app
        self._in_flight = in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_page(scope["path"]):
            await self._app(scope, receive, send)
            return
        principal = principal_of((key.decode("latin-1"), value.decode("latin-1")) for key, value in scope["headers"])
        if error := self._in_flight.enter(principal):
            await refusal(scope["path"], error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_flight.leave(principal)


def _is_page(path: str) -> bool:
    """Whether it is asked for by whoever looks after the platform, which must not fail for what callers do."""
    return path in ("/health", "/metrics") or path.startswith("/health/")


def refusal(path: str, error: AgentError) -> Response:
    """An answer in the form that errors have at that path."""
    if path.startswith("/v1/"):
        return of_openai(error)
    _, _, rest = path.removeprefix("/agents/").partition("/")
    if path.startswith("/agents/") and (rest == "a2a" or rest.startswith(("a2a/", ".well-known/"))):
        return of_a2a(error)
    # As `failures` has it, which imports what takes long.
    told = {"code": status.code_of(error).name, "reason": error.reason, "message": error.message}
    return JSONResponse({"error": told}, status_code=http_status(error))
