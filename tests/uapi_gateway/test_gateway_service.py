"""Calls with data in JSON's form: finding the method, checking the data."""

from typing import Any

import pytest
from agentruntime._proto.uapi.v1 import text_generation_pb2 as text
from agentruntime.errors import AgentError, InvalidArgument, Unimplemented

from tests.uapi_gateway.test_descriptors import file, files
from uapi_gateway.gateway_service import find_method, parse_request
from uapi_gateway.registry import Agent

TEXT = "uapi.v1.TextGenerationService"
AGENT = Agent("a", (TEXT, "p.S", "q.S", "r.Unknown"), (), descriptors=files(file("a.proto", "p", "x")))


def test_methods_of_own_and_known_services() -> None:
    assert find_method(AGENT, "p.S", "Do").input_type.full_name == "p.M"
    for name in (TEXT, "TextGenerationService"):
        assert find_method(AGENT, name, "GenerateText").containing_service.full_name == TEXT


@pytest.mark.parametrize(
    ("service", "method", "kind", "words"),
    [
        ("T", "Do", Unimplemented, "does not serve 'T'; it serves: uapi.v1.TextGenerationService, p.S"),
        ("S", "Do", InvalidArgument, "p.S or q.S"),
        ("p.S", "Undo", Unimplemented, "no method 'Undo'"),
        (TEXT, "StreamText", InvalidArgument, "streams"),
        ("r.Unknown", "Do", Unimplemented, "no reflection"),
    ],
)
def test_methods_that_are_refused(service: str, method: str, kind: type[AgentError], words: str) -> None:
    with pytest.raises(kind, match=words):
        find_method(AGENT, service, method)


def test_data_becomes_the_request() -> None:
    described = find_method(AGENT, TEXT, "GenerateText")
    message = parse_request(described, {"prompt": "x", "max_tokens": 3.0, "temperature": 0.5})
    expected = text.GenerateTextRequest(prompt="x", max_tokens=3, temperature=0.5)
    assert message.SerializeToString() == expected.SerializeToString()


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"promt": "x"}, "promt"),
        ({"prompt": 5}, "prompt"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"temperature": "warm"}, "temperature"),
    ],
)
def test_bad_data_is_refused_by_its_field(data: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument, match=field) as caught:
        parse_request(find_method(AGENT, TEXT, "GenerateText"), data)
    assert "GenerateTextRequest" in caught.value.message
    assert "\n" not in caught.value.message
