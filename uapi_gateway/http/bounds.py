"""What the JSON of a request may be at most, seen before anything is made of it.

A body that Envoy lets through may hold millions of values: what is made of each would stop the gateway's event loop,
and everybody's calls with it, for seconds.
"""

import re
from collections.abc import Mapping
from typing import Any

from agentruntime.errors import InvalidArgument, MessageTooLarge

MOST_VALUES = 50_000
# Of a message's parts, and of the keys of its metadata.
MOST_PARTS = 1000
# What was said before, as workers take it (agent_worker/conversations/service.py), and the message.
MOST_MESSAGES = 1001
# An object takes three levels of a protobuf.Value, which is read to the hundredth, with those that it lies in.
DEEPEST = 36
# A string, and one that nothing ends: it is gone through once, whatever is in it.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


def check_body(body: bytes) -> None:
    """Refuses a body with too many values before it is parsed: a million lists take their time, too.

    Raises:
        MessageTooLarge: it has.
    """
    if len(body) > MOST_VALUES:
        bare = _STRING.sub(b"", body)
        _check_count(bare.count(b",") + bare.count(b"[") + bare.count(b"{"))


def check(document: Any) -> None:
    """Refuses what is no JSON of a message.

    Raises:
        MessageTooLarge: it has too many values.
        InvalidArgument: they lie too deep, or a text is none.
    """
    level, count = [document], 0
    for _ in range(DEEPEST):
        below: list[Any] = []
        for value in level:
            if isinstance(value, Mapping | list):
                count += len(value)
                _check_count(count)
            if isinstance(value, Mapping):
                for key in value:
                    _check_text(key)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, str):
                _check_text(value)
        if not below:
            return
        level = below
    raise InvalidArgument(f"the body's JSON is deeper than {DEEPEST} levels", reason="INVALID_DATA")


def few(given: Any) -> Any:
    """A validator for what pydantic looks at each entry of, to tell each mistake: of an object.

    Raises:
        ValueError: it has too many keys.
    """
    if isinstance(given, Mapping) and len(given) > MOST_PARTS:
        raise ValueError(f"there are more than {MOST_PARTS} keys")
    return given


def _check_count(count: int) -> None:
    if count > MOST_VALUES:
        raise MessageTooLarge(f"the request has more than {MOST_VALUES} values; send data of that size as a blob")


def _check_text(text: str) -> None:
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(
            "a text in the body has half a character (a lone surrogate)", reason="INVALID_DATA"
        ) from None
