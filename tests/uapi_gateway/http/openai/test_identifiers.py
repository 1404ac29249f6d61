"""Ids of responses say where the message is, whatever ids it has on other surfaces."""

import re

import pytest
from agentruntime.errors import NotFound
from hypothesis import given, settings
from hypothesis import strategies as st

from uapi_gateway.http.openai import identifiers
from uapi_gateway.http.openai.identifiers import Place

_IDS = st.text([chr(code) for code in range(0x20, 0x7F)], min_size=1, max_size=200)


@settings(max_examples=50)
@given(_IDS, _IDS)
def test_there_and_back(conversation_id: str, message_id: str) -> None:
    place = Place("my-agent", conversation_id, message_id)
    assert re.fullmatch("resp_[A-Za-z0-9_-]+", place.response_id)
    assert identifiers.place_of(place.response_id) == place


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_anything_else_is_not_found(text: str) -> None:
    with pytest.raises(NotFound):
        identifiers.place_of("resp_" + text)


def test_a_key_gives_the_same_conversation() -> None:
    assert identifiers.new_conversation_id("a") == identifiers.new_conversation_id("a")
    assert identifiers.new_conversation_id("a") != identifiers.new_conversation_id("b")
    assert identifiers.new_conversation_id() != identifiers.new_conversation_id()
