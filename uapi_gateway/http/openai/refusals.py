"""Errors as the OpenAI API tells them: an HTTP status, and {"error": {"message", "type", "param", "code"}}.

The `code` is the platform's own reason ("AGENT_NOT_FOUND"), the same as on every other surface.
"""

from collections.abc import Mapping
from typing import Any

from agentruntime import errors
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from uapi_gateway.http.codes import http_status

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# The official client obeys it; else it repeats 409, 429 and 5xx twice.
_RETRY = "x-should-retry"
_LONGEST = 500


def body(error: errors.AgentError) -> dict[str, Any]:
    """What stands in "error"."""
    code = http_status(error)
    kind = _TYPES.get(code, "server_error" if code >= 500 else "invalid_request_error")
    return {"message": error.message, "type": kind, "param": error.metadata.get("param"), "code": error.reason}


def response(error: errors.AgentError, *, handled: bool = False) -> Response:
    """The answer.

    Args:
        error: what is wrong.
        handled: the agent had the message. A client that repeats the request by itself would have it handled again.
    """
    headers = {_RETRY: "false"} if handled or http_status(error) == 501 else {}
    if http_status(error) == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": body(error)}, status_code=http_status(error), headers=headers)


def invalid(message: str, param: str, reason: str = "INVALID_ARGUMENT") -> errors.InvalidArgument:
    """A request that is wrong in one of its fields."""
    return errors.InvalidArgument(message, reason=reason, metadata={"param": param})


def unsupported(param: str, what: str) -> errors.InvalidArgument:
    """A request for what agents cannot be asked for here."""
    return invalid(f"'{param}' is not supported: {what}", param, "UNSUPPORTED_PARAMETER")


def malformed(error: ValidationError, given: Any) -> errors.InvalidArgument:
    """The first thing that is wrong with a request, in a sentence that names the field.

    Args:
        error: what pydantic found.
        given: the request as it came, parsed; None if it is no JSON.
    """
    found = error.errors(include_url=False, include_input=False)[0]
    if found["type"] == "json_invalid":
        said = f"the body is not JSON: {found['ctx']['error']}"
        return errors.InvalidArgument(said[:_LONGEST], reason="INVALID_JSON")
    param = _path(found["loc"], given)
    said = found["msg"].removeprefix("Value error, ")
    if found["type"] == "missing":
        return invalid(f"'{param}' is missing"[:_LONGEST], param[:_LONGEST])
    where = f"'{param}': " if param else ""
    return invalid(f"{where}{said}"[:_LONGEST], param[:_LONGEST])


def _path(loc: tuple[int | str, ...], given: Any) -> str:
    """ "messages[0].content": without the names that pydantic gives to the kinds that a field may be of."""
    path = ""
    for index, step in enumerate(loc):
        if isinstance(step, int):
            path += f"[{step}]"
            given = given[step] if isinstance(given, list) and step < len(given) else None
        elif isinstance(given, Mapping) and (step in given or index == len(loc) - 1):
            path += f".{step}" if path else step
            given = given.get(step)
    return path
