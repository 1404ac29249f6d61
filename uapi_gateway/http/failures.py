"""Errors over HTTP, in one form: {"error": {"code": "NOT_FOUND", "reason": "AGENT_NOT_FOUND", "message": "…"}}."""

import secrets
from typing import Any

from agentruntime import log, status
from agentruntime.errors import AgentError, Internal, InvalidArgument, NotFound
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from uapi_gateway.http.codes import http_status

_log = log.get("uapi_gateway.http")
_UNAUTHENTICATED, _NOT_FOUND = 401, 404
# In a request's scope: its error was logged and answered, which Starlette raises all the same.
TOLD = "uapi.told"


def document(error: AgentError) -> dict[str, Any]:
    """What a caller reads of an error."""
    told = {"code": status.code_of(error).name, "reason": error.reason, "message": error.message}
    return {"error": {**told, **({"metadata": error.metadata} if error.metadata else {})}}


def response(error: AgentError) -> Response:
    code = http_status(error)
    headers = {"www-authenticate": "Bearer"} if code == _UNAUTHENTICATED else None
    return JSONResponse(document(error), status_code=code, headers=headers)


def tell(application: FastAPI) -> None:
    """Has an application answer errors so."""

    async def ours(_request: Request, error: Exception) -> Response:
        assert isinstance(error, AgentError)
        return response(error)

    async def unreadable(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        # Of several, because a thing may have several forms, the one that got furthest; a list is one, however long.
        found = max(error.errors(), key=lambda each: (len(each["loc"]), each["type"] == "too_long"))
        if found["type"] == "json_invalid":
            # In the words of the OpenAI API (openai/refusals.py).
            return response(InvalidArgument(f"the body is not JSON: {found['ctx']['error']}", reason="INVALID_JSON"))
        where = ".".join(str(part) for part in found["loc"] if part != "body")
        said = f"{where}: {found['msg']}" if where else f"the body is not what this takes: {found['msg']}"
        return response(InvalidArgument(said, reason="INVALID_DATA"))

    async def http(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == _NOT_FOUND:
            return response(NotFound("there is nothing here; /docs says what there is"))
        told = {"code": "INVALID_ARGUMENT", "reason": "HTTP", "message": f"{error.detail}; /docs says what there is"}
        return JSONResponse({"error": told}, status_code=error.status_code, headers=error.headers)

    async def unforeseen(request: Request, error: Exception) -> Response:
        request_id = secrets.token_hex(8)
        _log.error("unforeseen error", path=request.url.path, request_id=request_id, exc_info=error)
        request.scope[TOLD] = True
        return response(Internal(f"internal error, request id {request_id}", metadata={"request_id": request_id}))

    application.add_exception_handler(AgentError, ours)
    application.add_exception_handler(RequestValidationError, unreadable)
    application.add_exception_handler(HTTPException, http)
    application.add_exception_handler(Exception, unforeseen)
