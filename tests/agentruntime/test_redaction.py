"""Values and what is called a secret are left out, whatever they are written as."""

import base64
import json
import urllib.parse
from typing import Any

import pytest
from agentruntime import redaction
from agentruntime.redaction import Redactor
from hypothesis import given, strategies

KEY = b'sk-"09/+&\xc3\xa4zZ'
KNOWN = Redactor({"openai": [KEY]})


@pytest.mark.parametrize(
    "written",
    [
        KEY,
        KEY.hex().encode(),
        KEY.hex().upper().encode(),
        urllib.parse.quote(KEY, safe="").encode(),
        urllib.parse.quote_plus(KEY).encode(),
        json.dumps(KEY.decode())[1:-1].encode(),
        repr(KEY.decode())[1:-1].encode(),
    ],
)
def test_a_value_in_every_form(written: bytes) -> None:
    assert KNOWN.redact(b"key=" + written + b" sent") == b"key=[secret openai] sent"


@given(strategies.binary(max_size=20), strategies.binary(max_size=20))
def test_a_value_within_base64(before: bytes, after: bytes) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        assert b"[secret openai]" in KNOWN.redact(encode(before + KEY + after))


def test_basic_authentication() -> None:
    assert b"[secret openai]" in KNOWN.redact(b"Authorization: Basic " + base64.b64encode(b"user:" + KEY))


@given(strategies.binary(max_size=300))
def test_other_things_stay(data: bytes) -> None:
    if KEY not in data:
        assert KNOWN.redact(data) == data


@given(strategies.text(max_size=100))
def test_text(before: str) -> None:
    assert KNOWN.text(before + KEY.decode()) == before + "[secret openai]"


def test_the_longer_value_goes_first_and_ends_of_lines_do_not_matter() -> None:
    known = Redactor({"short": [b"abcdefgh\n"], "long": [b"abcdefghijkl"], "none": [b"seven77"]})
    assert known.redact(b"abcdefghijkl abcdefgh seven77") == b"[secret long] [secret short] seven77"


def test_each_line_of_a_value_with_several() -> None:
    known = Redactor({"pem": [b"-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nx\n-----END KEY-----\n"]})
    assert known.redact(b"read MIIEvQIBADANBgkq x") == b"read [secret pem] x"


def test_nothing_known_changes_nothing() -> None:
    known = Redactor({"short": [b"1234567"]})
    assert not known
    assert (known.redact(b"1234567"), known.text("1234567")) == (b"1234567", "1234567")
    assert list(known.masks(b"1234567")) == []


@pytest.mark.parametrize("value", [b"12345678", b"a-very-long-value-of-a-secret"])
def test_masks_are_as_long_as_what_they_cover(value: bytes) -> None:
    data = b"key " + value + b"\n"
    [(at, masked)] = Redactor({"openai": [value]}).masks(data)
    assert (at, len(masked)) == (4, len(value))
    assert value not in masked


def test_masks_keep_lines() -> None:
    value = b"first line, which is long\nsecond"
    written = bytearray(value)
    for at, masked in Redactor({"k": [value]}).masks(value):
        written[at : at + len(masked)] = masked
    assert written == b"[secret k]" + b"*" * 15 + b"\n" + b"*" * 6


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"token": "abc", "tokens": "3", "max_tokens": 4}, {"token": "[redacted]", "tokens": "3", "max_tokens": 4}),
        ({"headers": {"Authorization": "x"}}, {"headers": {"Authorization": "[redacted]"}}),
        ({"UAPI_AUTH_TOKEN": "x", "api-key": b"y", "client_secret": "z"}, "[redacted]"),
        ({"password": ""}, {"password": ""}),
        ({"event": "sent Bearer abcdef123456 to it"}, {"event": "sent [redacted] to it"}),
        ({"argv": ["--api-key", "uapi_eyJhbGciOi.J9-_x"]}, {"argv": ["--api-key", "[redacted]"]}),
        ({"event": "worker ready", "n": 3, "ok": True}, {"event": "worker ready", "n": 3, "ok": True}),
    ],
)
def test_by_name(entry: dict[str, Any], told: Any) -> None:
    found = redaction.by_name(entry)
    assert (set(found.values()) == {told}) if isinstance(told, str) else (found == told)
