"""What the JSON of a request may be."""

import json
from typing import Any

import pytest
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import event_log_pb2 as log
from agentruntime.errors import InvalidArgument, MessageTooLarge

from uapi_gateway.http import bodies, bounds


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize("many", [[1] * 50_001, {"a": [[]] * 50_001}, {str(n): n for n in range(50_001)}])
def test_too_many_values(many: Any) -> None:
    with pytest.raises(MessageTooLarge, match="50000 values"):
        bounds.check(many)
    with pytest.raises(MessageTooLarge, match="50000 values"):
        bounds.check_body(json.dumps(many).encode())


@pytest.mark.parametrize("text", [",[{" * 50_000, '"' * 50_000, '\\"[' * 50_000])
def test_text_is_one_value(text: str) -> None:
    bounds.check_body(json.dumps({"text": text}).encode())


def test_a_string_that_nothing_ends_is_gone_through_once() -> None:
    bounds.check_body(b'"\\' * 2**20)


@pytest.mark.parametrize("document", ["\ud800", [{"\ud800": 1}], {"a": ["\udfff"]}])
def test_half_a_character(document: Any) -> None:
    with pytest.raises(InvalidArgument, match="half a character"):
        bounds.check(document)


def test_what_is_not_too_deep_reaches_the_log() -> None:
    def asked(depth: int) -> bodies.RunRequest:
        return bodies.RunRequest.model_validate({"messages": [{"content": [{"data": _nested(depth)}]}]})

    with pytest.raises(InvalidArgument, match="deeper"):
        asked(31)
    event = proto.Event(message=asked(30).message("helper").message)
    written = log.LogRequests(requests=[log.LogRequest(append=log.AppendEvents(events=[event]))])
    assert log.LogRequests.FromString(written.SerializeToString()) == written
