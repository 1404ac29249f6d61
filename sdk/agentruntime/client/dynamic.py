"""Calls without generated code: a request as a dict, the answer as a dict."""

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format, struct_pb2

from agentruntime._proto.uapi.v1 import agent_gateway_pb2 as gateway_pb2
from agentruntime.errors import InvalidArgument

_KEYS = ("service", "method", "data")


def call_request(agent: str, request: Mapping[str, Any]) -> gateway_pb2.CallAgentRequest:
    """The message of `{"service": …, "method": …, "data": {…}}`.

    Raises:
        InvalidArgument: a key is unknown or missing, or the data is not JSON.
    """
    unknown = sorted(request.keys() - set(_KEYS))
    if unknown or not request.get("service") or not request.get("method"):
        raise InvalidArgument(
            "a call is a dict with service, method and data" + (f", not {unknown[0]}" if unknown else "")
        )
    data = struct_pb2.Struct()
    try:
        # protobuf alone would let NaN through, which is no JSON.
        json_format.Parse(json.dumps(dict(request.get("data") or {}), allow_nan=False), data)
    except (json_format.ParseError, TypeError, ValueError) as error:
        raise InvalidArgument(f"the call's data is not JSON: {error}") from None
    return gateway_pb2.CallAgentRequest(
        agent_id=agent, service=str(request["service"]), method=str(request["method"]), data=data
    )


def call_response(response: gateway_pb2.CallAgentResponse) -> dict[str, Any]:
    """The answer's data. JSON's numbers are doubles on the way; whole ones come back as int."""
    data: dict[str, Any] = _whole(json_format.MessageToDict(response.data))
    return data


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
