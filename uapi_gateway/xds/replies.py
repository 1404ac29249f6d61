"""What Envoy answers by itself, as gRPC statuses with a reason."""

import base64
from pathlib import Path
from typing import Any

from agentruntime import status
from agentruntime.api_keys import PREFIX
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from uapi_gateway.access import headers
from uapi_gateway.access.keys import KEY_MARK
from uapi_gateway.access.policy import ANONYMOUS
from uapi_gateway.xds.routes import AGENT_HEADER

_INVALID = (
    "the credential is not valid: it has expired, was revoked, or is not of this platform; `agent keys create` makes "
    "an API key, `agent login` gets a token"
)
_NOT_PERMITTED = (
    "may not call this agent: `agent whoami` shows which agents its key, token or certificate is for, and the agent "
    "may demand more of its callers"
)
_TOO_LARGE = "the request is larger than a message may be, which is 4194304 bytes"
_TOO_MANY = "the caller makes more calls than it may; try again in a second"


def local_replies(token_file: Path | None = None) -> list[dict[str, Any]]:
    """The mappers, the first that fits first.

    Args:
        token_file: where callers of this machine find this user's own key; None where others can connect, too.
    """
    return [*_refusals(missing(token_file)), *_failures(), *_malformed(), *_excesses()]


def missing(token_file: Path | None) -> str:
    """What is said to those who show no credential."""
    first = f"`authorization: Bearer $(cat {token_file})`, another" if token_file else "`authorization: Bearer …`, an"
    return (
        f"this needs a credential: send {first} API key (`agent keys create` makes one; the SDK takes "
        "UAPI_AUTH_TOKEN) or a token of an identity provider (`agent login` gets one); `agent up --anonymous call` "
        "lets callers in without one where an agent demands none"
    )


def _failures() -> list[dict[str, Any]]:
    """Of calls that reach no worker, or lose it."""
    agent = f"%REQ({AGENT_HEADER}):63%"
    unreachable = {"response_flag_filter": {"flags": ["UF", "UH", "URX"]}}
    return [
        _reply(
            {"response_flag_filter": {"flags": ["NC"]}},
            code=5,
            http=404,
            reason="AGENT_NOT_FOUND",
            message="agent not found",
            text=f"agent '{agent}' not found",
        ),
        _reply(
            {"response_flag_filter": {"flags": ["DT"]}},
            code=4,
            http=504,
            reason="DEADLINE_EXCEEDED",
            message="the call's deadline has passed",
        ),
        _reply(
            _both({"response_flag_filter": {"flags": ["UC"]}}, _has(AGENT_HEADER)),
            code=14,
            http=503,
            reason="WORKER_LOST",
            message="the worker ended during the call",
            text=f"the worker of agent '{agent}' ended during the call",
        ),
        _reply(
            _both(unreachable, _has(AGENT_HEADER)),
            code=14,
            http=503,
            reason="AGENT_NOT_READY",
            message="no worker could be reached",
            text=f"no worker of agent '{agent}' could be reached",
        ),
        _reply(
            _both(unreachable, _begins(":path", "/uapi.v1.AgentPool/")),
            code=14,
            http=503,
            reason="POOL_UNAVAILABLE",
            message="the pool does not answer; `agent status` says what runs",
        ),
    ]


def _malformed() -> list[dict[str, Any]]:
    """Of what the routes refuse to pass on; they say what it is."""
    return [
        _reply(
            _has_status(400),
            code=3,
            http=400,
            reason="METADATA_INVALID",
            message="the call's metadata is malformed",
            text="%LOCAL_REPLY_BODY%",
        )
    ]


def _excesses() -> list[dict[str, Any]]:
    """Of what is more than may be, or more than there is room for."""
    return [
        _reply(
            # Its flag is set only after this.
            _has_status(429),
            code=8,
            http=429,
            reason="RATE_LIMITED",
            message=_TOO_MANY,
        ),
        _reply(
            {"response_flag_filter": {"flags": ["OM"]}},
            code=14,
            http=503,
            reason="GATEWAY_OVERLOADED",
            message="the gateway has no memory for more calls; try again later",
        ),
        _reply(
            _has_status(413),
            code=8,
            http=413,
            reason="MESSAGE_TOO_LARGE",
            message=_TOO_LARGE,
        ),
        _reply(
            _has_status(431),
            code=8,
            http=431,
            reason="METADATA_TOO_LARGE",
            message="the call's metadata is larger than 60 KiB",
        ),
    ]


def http_replies(token_file: Path | None = None) -> dict[str, Any]:
    """The same on the listener for HTTP, in the form of its APIs' errors."""
    anonymous = _both(_has_status(403), _is(headers.PRINCIPAL, ANONYMOUS))
    cases = [
        (_has_status(401), 401, "UNAUTHENTICATED", "CREDENTIAL_INVALID", _INVALID),
        (anonymous, 401, "UNAUTHENTICATED", "CREDENTIAL_MISSING", _literal(missing(token_file))),
        (_has_status(403), 403, "PERMISSION_DENIED", "NOT_PERMITTED", "the caller may not see this page"),
        (_has_status(408), 408, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "the request did not arrive in time"),
        (_has_status(413), 413, "RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE", _TOO_LARGE),
        (_has_status(429), 429, "RESOURCE_EXHAUSTED", "RATE_LIMITED", _TOO_MANY),
        (_has_status(503), 503, "UNAVAILABLE", "UNAVAILABLE", "the gateway does not answer; try again in a second"),
    ]
    mappers = [
        {"filter": match, "status_code": code, "body_format_override": {"json_format": {"error": {
            "code": name, "reason": reason, "message": text}}}}
        for match, code, name, reason, text in cases
    ]  # fmt: skip
    return {"mappers": mappers}


def _refusals(nothing_shown: str) -> list[dict[str, Any]]:
    """Of callers that may not, or whose credential is no good."""
    miswritten = _contains("authorization", KEY_MARK)
    # Where providers are known, Envoy says of a key what is wrong with it as one of their tokens.
    of_key = {"or_filter": {"filters": [_contains("authorization", PREFIX), _contains("x-api-key", PREFIX)]}}
    anonymous = _is(headers.PRINCIPAL, ANONYMOUS)
    return [
        _reply(
            _both(_has_status(403), miswritten),
            code=16,
            http=401,
            reason="CREDENTIAL_INVALID",
            message="the API key is not written as the gateway reads it",
            text="the API key is not written as the gateway reads it, and is not passed on to agents: send "
            "'authorization: Bearer uapi_…' once, or 'x-api-key: uapi_…'",
        ),
        _reply(
            _both(_has_status(401), of_key),
            code=16,
            http=401,
            reason="CREDENTIAL_INVALID",
            message=_INVALID,
        ),
        _reply(
            _has_status(401),
            code=16,
            http=401,
            reason="CREDENTIAL_INVALID",
            message=_INVALID,
            text="the credential is not valid (%LOCAL_REPLY_BODY%): it has expired, was revoked, or is not of this "
            "platform; `agent keys create` makes an API key, `agent login` gets a token",
        ),
        _reply(
            _both(_has_status(403), anonymous),
            code=16,
            http=401,
            reason="CREDENTIAL_MISSING",
            message=nothing_shown,
            text=_literal(nothing_shown),
        ),
        _reply(
            _has_status(403),
            code=7,
            http=403,
            reason="NOT_PERMITTED",
            message=f"the caller {_NOT_PERMITTED}",
            # Not which agent: it may be known from the service alone, and is not the caller's to know.
            text=f"%REQ({headers.PRINCIPAL}):128% {_NOT_PERMITTED}",
        ),
    ]


def _reply(
    match: dict[str, Any], *, code: int, http: int, reason: str, message: str, text: str = ""
) -> dict[str, Any]:
    """A mapper.

    Args:
        match: what it is for.
        code: the status, of gRPC.
        http: the status, of HTTP.
        reason: of the ErrorInfo in the status' details.
        message: in the status' details, where Envoy fills in nothing.
        text: the message for all who do not read details; Envoy fills it in. "" for the same.
    """
    headers = {"grpc-status": str(code), status.DETAILS_KEY: _details(code, reason, message)}
    return {
        "filter": match,
        "status_code": http,
        "headers_to_add": [
            {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for key, value in headers.items()
        ],
        "body_format_override": {"text_format_source": {"inline_string": text or message}},
    }


def _details(code: int, reason: str, message: str) -> str:
    """`grpc-status-details-bin`; unpadded, as gRPC over HTTP/2 asks of senders of binary metadata."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=status.DOMAIN))
    wire = status_pb2.Status(code=code, message=message, details=[detail]).SerializeToString()
    return base64.b64encode(wire).decode().rstrip("=")


def _literal(text: str) -> str:
    """A text in which Envoy fills in nothing."""
    return text.replace("%", "%%")


def _both(*filters: dict[str, Any]) -> dict[str, Any]:
    return {"and_filter": {"filters": list(filters)}}


def _has_status(code: int) -> dict[str, Any]:
    comparison = {"op": "EQ", "value": {"default_value": code, "runtime_key": f"uapi.status_{code}"}}
    return {"status_code_filter": {"comparison": comparison}}


def _has(header: str) -> dict[str, Any]:
    return {"header_filter": {"header": {"name": header, "present_match": True}}}


def _is(header: str, value: str) -> dict[str, Any]:
    return {"header_filter": {"header": {"name": header, "string_match": {"exact": value}}}}


def _contains(header: str, text: str) -> dict[str, Any]:
    return {"header_filter": {"header": {"name": header, "string_match": {"contains": text}}}}


def _begins(header: str, prefix: str) -> dict[str, Any]:
    return {"header_filter": {"header": {"name": header, "string_match": {"prefix": prefix}}}}
