"""What a command prints: JSON for programs, a table for people, and a sign of life where something takes long."""

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from agentruntime import errors

if TYPE_CHECKING:
    from google.protobuf.message import Message

_PROGRESS_AFTER_S = 1.0
# What moves a terminal's cursor, changes its colours or turns its lines around: control characters but for the line
# break and the tab, halves of characters, separators of lines and what changes the direction of writing.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Format(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


_default = Format.TABLE

Output = Annotated[Format | None, typer.Option("--output", "-o", help="How to print the result.")]


def set_default(output: Output = None) -> None:
    """Options before the verb."""
    global _default  # noqa: PLW0603 — because one process runs one command line
    _default = output or Format.TABLE


def wants_json(output: Format | None) -> bool:
    """Whether this command prints JSON: by its own option, else by the one before the verb."""
    return (output or _default) is Format.JSON


def harmless(text: str) -> str:
    """The text without what steers a terminal: it comes from elsewhere."""
    return _STEERING.sub(lambda found: ("\\x%02x" if found[0] < "\u0100" else "\\u%04x") % ord(found[0]), text)


def shown(text: str, stream: TextIO) -> str:
    """A text as that stream gets it: harmless on a terminal, as it is elsewhere."""
    return harmless(text) if stream.isatty() else text


def print_json(data: Any) -> None:
    """One JSON document."""
    print(_json(data, indent=2))


def print_json_line(data: Any) -> None:
    """One JSON document in one line, for streams."""
    print(json_line(data), flush=True)


def json_line(data: Any) -> str:
    """A JSON document without a line break."""
    return _json(data, indent=None)


def _json(data: Any, *, indent: int | None) -> str:
    # JSON may escape any character, and says the same then.
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under their columns; as wide as they are where nobody looks."""
    from rich.console import Console  # noqa: PLC0415 — because it costs 80 ms that JSON and streams can do without
    from rich.table import Table  # noqa: PLC0415 — because of the same
    from rich.text import Text  # noqa: PLC0415 — because of the same

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        # The last column may wrap: reasons and notes are sentences.
        table.add_column(column, no_wrap=number < len(columns) - 1, overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(cell, sys.stdout)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    with console.capture() as captured:
        console.print(table)
    # rich fills every row up with blanks, which a narrow terminal would wrap and a file would keep.
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def note(text: str) -> None:
    """A remark for people: on stderr, so that it never mixes with results."""
    print(shown(text, sys.stderr), file=sys.stderr)


@contextmanager
def progress(text: str, *, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Shows on a terminal, with a spinner, what goes on, if the body takes longer than a second.

    Yields a function that says what goes on now: redrawn in place on a terminal, elsewhere a line of its own, unless
    `quiet`.
    """
    if not sys.stderr.isatty():
        yield (lambda _said: None) if quiet else note
        return
    spinner = _Spinner(text)
    timer = threading.Timer(_PROGRESS_AFTER_S, spinner.start)
    timer.daemon = True
    timer.start()
    try:
        yield spinner.say
    finally:
        timer.cancel()
        timer.join()
        spinner.stop()


class _Spinner:
    """One line on a terminal. Threads may share it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._shown: Any = None
        self._lock = threading.Lock()

    def start(self) -> None:
        from rich.console import Console  # noqa: PLC0415 — because it is rarely shown

        with self._lock:
            if self._shown is None:
                self._shown = Console(stderr=True).status(self._text)
                self._shown.start()

    def say(self, text: str) -> None:
        self._text = text
        self.start()
        self._shown.update(text)

    def stop(self) -> None:
        if self._shown is not None:
            self._shown.stop()


def as_data(message: "Message") -> dict[str, Any]:
    """A message in protobuf's JSON form by its field names, defaults included, with 64-bit integers as numbers.

    Raises:
        OutOfRange: an agent put a number into it that JSON does not have.
    """
    from google.protobuf import json_format  # noqa: PLC0415 — because init and version do without protobuf

    try:
        data: dict[str, Any] = json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    except json_format.SerializeToJsonError:
        raise errors.OutOfRange(
            "what an agent said holds an infinite number, or none, which JSON cannot write; read it over gRPC"
        ) from None
    return _with_numbers(data, message.DESCRIPTOR)


def _with_numbers(data: dict[str, Any], descriptor: Any) -> dict[str, Any]:
    # protobuf's JSON writes 64-bit integers as strings; ours are sizes and counts, which JSON's numbers hold.
    for field in descriptor.fields:
        value = data.get(field.name)
        if value is None:
            continue
        if field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
            data[field.name] = [int(item) for item in value] if isinstance(value, list) else int(value)
            continue
        nested = field.message_type
        foreign = nested is None or nested.full_name.startswith("google.protobuf.") or nested.GetOptions().map_entry
        for item in [] if foreign else value if isinstance(value, list) else [value]:
            _with_numbers(item, nested)
    return data
