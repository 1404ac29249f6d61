"""YAML that somebody wrote by hand, and perhaps somebody who means ill: small, and read in little time and memory."""

from pathlib import Path
from typing import Any

import yaml

# Longer than anybody writes by hand, and read in a second.
LONGEST_BYTES = 64 * 2**10
_DEEPEST = 32


class _Loader(yaml.SafeLoader):
    """Without references to other places of the document: with a few of them, some lines become gigabytes."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            alias: Any = self.peek_event()  # type: ignore[no-untyped-call]  # not in the stubs
            raise yaml.YAMLError(f"*{alias.anchor} stands for what is written elsewhere; write it out")
        self._depth += 1
        self._check_depth(self._depth)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def fetch_flow_collection_start(self, kind: Any) -> None:
        # It looks far ahead, and each bracket costs as much as there are open ones.
        self._check_depth(self.flow_level)
        super().fetch_flow_collection_start(kind)

    def _check_depth(self, depth: int) -> None:
        if depth > _DEEPEST:
            raise yaml.YAMLError("it is nested too deeply")


def read(path: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: it is too long, or no UTF-8; how a sentence about it goes on.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        content = stream.read(LONGEST_BYTES + 1)
    if len(content) > LONGEST_BYTES:
        raise ValueError(f"is longer than {LONGEST_BYTES} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None


def load(text: str) -> Any:
    """What a document says.

    Raises:
        ValueError: it is too long, or no YAML; how a sentence about it goes on.
    """
    if len(text) > LONGEST_BYTES:
        raise ValueError(f"is longer than {LONGEST_BYTES} bytes")
    try:
        return yaml.load(text, _Loader)  # noqa: S506 — of the safe one
    # Beside its own errors: of dates and numbers that cannot be, and of what is nested too deeply.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
