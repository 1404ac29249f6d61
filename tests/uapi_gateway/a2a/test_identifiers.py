"""Ids of tasks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uapi_gateway.a2a import identifiers

_IDS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=200)


@given(_IDS, _IDS)
def test_any_two_ids_are_found_again_and_stand_in_a_path(conversation: str, message: str) -> None:
    task = identifiers.task_id(conversation, message)
    assert identifiers.parse(task) == (conversation, message)
    assert not set(task) & set("/?#%:& ")


@pytest.mark.parametrize(
    "text", ["", "c", "c.", ".m", "c.m.x", "c m.x", "~41.b", "~2E.b", "~0a.b", "a.~80", "a~.b", "a." + "b" * 201]
)
def test_anything_else_is_no_tasks(text: str) -> None:
    assert identifiers.parse(text) is None
