"""Errors outside of A2A's own, in the form of google.rpc.Status. No word of its SDK is here."""

from typing import Any

from agentruntime import errors, status
from starlette.responses import JSONResponse, Response

from uapi_gateway.http.codes import http_status


def refusal(error: errors.AgentError, **more: Any) -> Response:
    """The answer; `more` stands beside the error."""
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": error.reason,
        "domain": status.DOMAIN,
        "metadata": error.metadata,
    }
    code = http_status(error)
    said = {"code": code, "status": status.code_of(error).name, "message": error.message, "details": [info]}
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, errors.Unauthenticated) else None
    return JSONResponse({"error": said, **more}, status_code=code, headers=headers)
