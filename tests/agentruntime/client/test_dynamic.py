"""Calls without generated code."""

from typing import Any

import pytest
from agentruntime._proto.uapi.v1 import agent_gateway_pb2 as gateway_pb2
from agentruntime.client.dynamic import call_request, call_response
from agentruntime.errors import InvalidArgument

# As the user's document has it.
REQUEST = {
    "service": "TextGenerationService",
    "method": "GenerateText",
    "data": {"prompt": "Write a poem about AI", "temperature": 0.7, "max_tokens": 100},
}


def test_the_document_s_request() -> None:
    message = call_request("text-generator-01", REQUEST)
    assert (message.agent_id, message.service, message.method) == (
        "text-generator-01",
        "TextGenerationService",
        "GenerateText",
    )
    assert dict(message.data) == REQUEST["data"]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({}, "service, method and data"),
        ({"service": "S"}, "service, method and data"),
        ({"service": "S", "method": "M", "date": {}}, "not date"),
        ({"service": "S", "method": "M", "data": {"x": object()}}, "not JSON"),
        ({"service": "S", "method": "M", "data": {"x": float("nan")}}, "not JSON"),
    ],
)
def test_what_is_no_call(request_: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        call_request("a", request_)


def test_whole_numbers_come_back_whole() -> None:
    response = gateway_pb2.CallAgentResponse()
    response.data.update({"tokens_used": 12, "confidence": 0.5, "list": [1, {"x": 2}]})
    data = call_response(response)
    assert data == {"tokens_used": 12, "confidence": 0.5, "list": [1, {"x": 2}]}
    assert isinstance(data["tokens_used"], int)
