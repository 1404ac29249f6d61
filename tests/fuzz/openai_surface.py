"""What callers of the OpenAI surface send, and what the log gives it."""

import json
from collections.abc import Callable
from typing import Any

from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import event_log_pb2 as log
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from tests.fuzz.target import Target, is_said, text
from uapi_gateway.http.codes import http_status
from uapi_gateway.http.openai import identifiers, messages, refusals, requests
from uapi_gateway.http.openai.chat import Completion
from uapi_gateway.http.openai.identifiers import Place
from uapi_gateway.http.openai.requests import ChatRequest, ResponseRequest
from uapi_gateway.http.openai.responses import ResponseBuilder

_PLACE = Place("my-agent", "c", "m")


def _refused(act: Callable[[], object]) -> None:
    """It goes well, or is refused in a way that can be told."""
    try:
        act()
    except errors.AgentError as error:
        wrong = error
    else:
        return
    is_said(wrong.message)
    answer = json.loads(bytes(refusals.response(wrong).body))
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert 400 <= http_status(wrong) < 500, wrong


def chat(data: bytes) -> None:
    """A chat completion: messages that can be sent, or an error of the caller's."""

    def act() -> None:
        request = requests.read(ChatRequest, data)
        earlier, last = messages.history(request.messages, "messages")
        last.metadata.update({**(request.metadata or {}), **request.options()})
        proto.StreamMessageRequest(earlier=earlier, message=last).SerializeToString()

    _refused(act)


def response(data: bytes) -> None:
    """A response: the same, and what was sent can be told again."""

    def act() -> None:
        request = requests.read(ResponseRequest, data)
        if isinstance(request.input, str):
            said = messages.of_text(request.input)
        else:
            earlier, said = messages.history(messages.of_input(request.input), "input")
            json.dumps([messages.input_item(each, "i") for each in earlier], allow_nan=False)
        said.metadata.update({**(request.metadata or {}), **request.options()})
        builder = ResponseBuilder(_PLACE, 0.0)
        builder.on(proto.Event(message=said))
        told = builder.document()
        assert told["metadata"] == (request.metadata or {})
        for name in ("instructions", "user", "previous_response_id", "background"):
            assert told[name] == getattr(request, name), name
        json.dumps([told, builder.input_items()], allow_nan=False)

    _refused(act)


def events(data: bytes) -> None:
    """Events in any order, with any content: all that is told of them is JSON, and numbered without a gap."""
    try:
        read = log.Events.FromString(data) if data[:1] != b"{" else json_format.Parse(data, log.Events())
    except (DecodeError, json_format.ParseError, UnicodeDecodeError, RecursionError, ValueError):
        return
    builder, completion = ResponseBuilder(_PLACE, 0.0), Completion(_PLACE, 0, streams=True, with_usage=True)
    told: list[dict[str, Any]] = []
    for event in read.events:
        told += builder.on(event)
        json.dumps([builder.document(), builder.input_items()], allow_nan=False)
    assert [each["sequence_number"] for each in told] == list(range(len(told)))
    json.dumps(told, allow_nan=False)
    try:
        for event in read.events:
            json.dumps(completion.on(event), allow_nan=False)
    except errors.AgentError as error:
        refusals.response(error)


def response_id(data: bytes) -> None:
    """Ids of responses: one place each, and what is none is not found."""
    try:
        place = identifiers.place_of(text(data))
    except errors.NotFound as error:
        is_said(error.message)
        return
    assert place.response_id == text(data)


TARGETS = [
    Target(
        "openai-chat",
        chat,
        (b'{"type":"image_url","image_url":{"url":"data:', b'"role":"', b'"content":[', b";base64,"),
    ),
    Target(
        "openai-response", response, (b'"input":[', b'"conversation":{"id":"', b'"metadata":{"', b'"type":"message"')
    ),
    Target(
        "openai-events", events, (b'{"events":[', b'"attempt":{"number":', b'"chunk":{"text":"', b'"completion":{')
    ),
    Target("openai-id", response_id, (b"resp_", b"bXktYWdlbnQAY", b"AA", b"=", b"-_")),
]
