"""Takes secrets out of what is written down: known values wherever they stand, and whatever is called a secret.

The first is for what agents print, whose secrets the platform knows. The second is a net below the platform's own
logs, which have none to begin with.
"""

import base64
import json
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from agentruntime.secrets import LEAST_REDACTED_BYTES

# Of a value with several lines, such as a private key: shorter ones say nothing, like a closing brace.
_LEAST_LINE_BYTES = 16
# Longer ones are looked for as they are, and line by line.
_MOST_ENCODED_BYTES = 4096
_HIDDEN = "[redacted]"
# "tokens" counts something, "token" is one.
_KEY = re.compile(r"(?:^|[-_.])(?:authorization|token|secret|password|passwd|api[-_]?key)$", re.IGNORECASE)
# RFC 6750, section 2.1; and a key of the platform, which is a JWT behind its prefix.
_CREDENTIAL = re.compile(r"(?i:\bbearer +)[A-Za-z0-9._~+/=-]{8,}|\buapi_eyJ[A-Za-z0-9._-]+")
_DEEPEST = 4


class Redactor:
    """Replaces values by `[secret NAME]`: as they are, and as base64, hex, URLs and JSON write them.

    Args:
        values: by the name that stands in their place. Short ones are left as they are.
    """

    def __init__(self, values: Mapping[str, list[bytes]]) -> None:
        forms: dict[bytes, bytes] = {}
        for name, each in values.items():
            for value in each:
                forms |= dict.fromkeys(_forms(value), f"[secret {name}]".encode())
        # The longest first: one value may begin with another. No regular expression: to compile one of long values
        # takes longer than to start a worker.
        self._forms = dict(sorted(forms.items(), key=lambda form: len(form[0]), reverse=True))

    def __bool__(self) -> bool:
        """Whether there is anything to be replaced."""
        return bool(self._forms)

    def redact(self, data: bytes) -> bytes:
        """What was written, without the values."""
        for form, label in self._forms.items():
            if form in data:
                data = data.replace(form, label)
        return data

    def masks(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """What to write over the values, in this order: each as long as its value, with its newlines, and where."""
        for form, label in self._forms.items():
            at = data.find(form)
            while at >= 0:
                padded = label.ljust(len(form), b"*")
                yield at, bytes(old if old in b"\r\n" else new for old, new in zip(form, padded, strict=False))
                at = data.find(form, at + len(form))

    @property
    def longest_bytes(self) -> int:
        """Of what is looked for."""
        return len(next(iter(self._forms), b""))

    def text(self, text: str) -> str:
        """The same of text."""
        if not self._forms:
            return text
        redacted = self.redact(text.encode(errors="surrogatepass"))
        try:
            return redacted.decode(errors="surrogatepass")
        except UnicodeDecodeError:  # a value that is no text began or ended within a character
            return redacted.decode(errors="replace")


def _forms(value: bytes) -> Iterator[bytes]:
    value = value.strip()
    if len(value) < LEAST_REDACTED_BYTES:
        return
    yield value
    lines = [line.strip() for line in value.splitlines()]
    if len(lines) > 1:  # what is printed is looked at line by line
        yield from (line for line in lines if len(line) >= _LEAST_LINE_BYTES)
    if len(value) > _MOST_ENCODED_BYTES:
        return
    yield from (value.hex().encode(), value.hex().upper().encode())
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            # Wherever in a longer text it stands, all but the characters that it shares with its neighbours.
            encoded = encode(bytes(before) + value).rstrip(b"=")
            whole = (before + len(value)) // 3 * 4
            yield encoded[-(-before * 8 // 6) : whole]
    yield from (part.encode() for part in (urllib.parse.quote(value, safe=""), urllib.parse.quote_plus(value)))
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return
    yield from (json.dumps(text)[1:-1].encode(), json.dumps(text, ensure_ascii=False)[1:-1].encode())
    yield repr(text)[1:-1].encode(errors="replace")


def by_name(entry: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """A log entry without what its keys call a secret, and without bearer tokens and API keys in its text."""
    return {key: _HIDDEN if _secret(key, value) else _cleaned(value, depth) for key, value in entry.items()}


def _secret(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, (str, bytes)) and bool(value) and bool(_KEY.search(key))


def _cleaned(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return _CREDENTIAL.sub(_HIDDEN, value)
    if isinstance(value, Mapping) and depth < _DEEPEST:
        return by_name(value, depth + 1)
    if isinstance(value, (list, tuple)) and depth < _DEEPEST:
        return [_cleaned(each, depth + 1) for each in value]
    return value
