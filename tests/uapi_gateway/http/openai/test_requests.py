"""What is taken as a request, and what is said of what is not."""

import json
from typing import Any

import pytest
from agentruntime.errors import InvalidArgument, MessageTooLarge
from pydantic import ValidationError

from uapi_gateway.http.openai import messages
from uapi_gateway.http.openai.requests import ChatRequest, ResponseRequest, read

_USER = {"role": "user", "content": "Hi"}


def _chat(**more: Any) -> bytes:
    return json.dumps({"model": "helper", "messages": [_USER], **more}).encode()


def _response(**more: Any) -> bytes:
    return json.dumps({"model": "helper", "input": "Hi", **more}).encode()


def test_what_nobody_knows_is_passed_over() -> None:
    read(ChatRequest, _chat(tomorrows_option=1, tools=[], tool_choice="auto", n=1, response_format={"type": "text"}))
    read(ResponseRequest, _response(tomorrows_option=1, tools=[], truncation="auto", include=["x"]))


@pytest.mark.parametrize(
    ("more", "param", "said"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "an agent brings its own tools"),
        ({"functions": [{}]}, "functions", "an agent brings its own tools"),
        ({"tool_choice": "required"}, "tool_choice", "an agent brings its own tools"),
        ({"n": 2}, "n", "an agent answers once"),
        ({"logprobs": True}, "logprobs", "no probabilities"),
        ({"response_format": {"type": "json_object"}}, "response_format", "decides the form"),
        ({"modalities": ["text", "audio"]}, "modalities", "in text"),
        ({"web_search_options": {}}, "web_search_options", "own tools"),
        ({"moderation": {"model": "m"}}, "moderation", "moderates"),
        ({"model": ""}, "model", "at least 1 character"),
        ({"model": 5}, "model", "valid string"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "valid string"),
        ({"messages": [{"role": "king", "content": "Hi"}]}, "messages[0].role", "'user'"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role", "is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 1}}]}]},
         "messages[0].content[0].image_url.url", "valid string"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0]", "'video'"),
        ({"metadata": {"openai.user": "x"}}, "metadata", "choose another name"),
        ({"metadata": {"a": 1}}, "metadata.a", "valid string"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "at most 16"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"stream": "yes"}, "stream", "valid boolean"),
    ],
)  # fmt: skip
def test_what_a_chat_completion_cannot_be_asked(more: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said) as failure:
        read(ChatRequest, _chat(**more))
    assert failure.value.metadata["param"] == param


@pytest.mark.parametrize(
    ("more", "param", "said"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools", "an agent brings its own tools"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format", "decides the form"),
        ({"prompt": {"id": "p"}}, "prompt", "no stored prompts"),
        ({"input": 5}, "input", "valid string"),
        ({"input": []}, "input", "at least 1 item"),
        ({"conversation": 5}, "conversation", "an object"),
        ({"background": True, "store": False}, "store", "until it is fetched"),
    ],
)
def test_what_a_response_cannot_be_asked(more: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said) as failure:
        read(ResponseRequest, _response(**more))
    assert failure.value.metadata["param"] == param


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b'{"model":"\\ud800"}', b"[" * 5000, b"[]", b"null"])
def test_what_is_no_json_object(raw: bytes) -> None:
    with pytest.raises(InvalidArgument):
        read(ChatRequest, raw)


@pytest.mark.parametrize(
    ("message", "param", "said"),
    [
        ({"role": "tool", "content": "5", "tool_call_id": "c"}, "messages[0].role", "own tools"),
        ({"role": "user", "content": "a", "tool_calls": [{}]}, "messages[0].tool_calls", "own tools"),
        ({"role": "user"}, "messages[0].content", "is missing"),
        ({"role": "assistant", "content": "a"}, "messages[0].role", "said to the agent"),
        ({"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]},
         "messages[0].content[0].file.file_id", "no stored files"),
        ({"role": "user", "content": [{"type": "input_image", "file_id": "f"}]},
         "messages[0].content[0].file_id", "no stored files"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "!", "format": "wav"}}]},
         "messages[0].content[0].input_audio.data", "not base64"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,x"}}]},
         "messages[0].content[0].image_url.url", "must be an address"),
    ],
)  # fmt: skip
def test_messages_that_are_none(message: dict[str, Any], param: str, said: str) -> None:
    request = read(ChatRequest, _chat(messages=[message]))
    with pytest.raises(InvalidArgument, match=said) as failure:
        messages.history(request.messages, "messages")
    assert failure.value.metadata["param"] == param


@pytest.mark.parametrize(
    "more",
    [
        {"messages": [1] * 40_000},
        {"messages": [{"role": "user", "content": ""}] * 1002},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 1001}]},
        {"messages": [{"role": "user", "content": [1] * 40_000}]},
        {"stop": [1] * 40_000},
        {"modalities": [1] * 40_000},
        {"metadata": {str(n): 1 for n in range(40_000)}},
    ],
)
def test_many_mistakes_are_one(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as failure:
        ChatRequest.model_validate_json(_chat(**more))
    assert failure.value.error_count() <= 2


def test_many_values() -> None:
    large: list[dict[str, Any]] = [{"tools": [1] * 50_001}, {"messages": [{}] * 50_001}]
    for more in large:
        with pytest.raises(MessageTooLarge):
            read(ChatRequest, _chat(**more))
    with pytest.raises(InvalidArgument, match="at most 1001"):
        read(ResponseRequest, _response(input=[{"role": "user", "content": ""}] * 1002))
