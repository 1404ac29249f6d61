"""What people see of a conversation."""

from typing import Any

import pytest
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.cli.transcript import Printer, detail
from agentruntime.conversation import to_value

from tests.agentruntime.conversation_service import said

MESSAGE = {"message": said("hi")}
BEGUN = {"attempt": proto.Attempt(number=1)}


def piece(text: str) -> dict[str, Any]:
    return {"chunk": proto.Part(text=text)}


def show(capsys: pytest.CaptureFixture[str], *contents: dict[str, Any], live: bool = True) -> tuple[str, str]:
    printer = Printer(live=live, as_json=False)
    for content in contents:
        printer.show(proto.Event(**content))
    out, err = capsys.readouterr()
    return out, err


def test_pieces_are_printed_as_they_come_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    whole = (MESSAGE, BEGUN, piece("a "), piece("b"), {"completion": said("a b, c")})
    assert show(capsys, *whole) == ("a b, c\n", "")
    assert show(capsys, *whole, live=False) == ("a b, c\n", "")
    assert show(capsys, *whole[:3]) == ("a ", "")
    assert show(capsys, *whole, *whole) == ("a b, c\n" * 2, "")
    assert show(capsys, MESSAGE, BEGUN, {"completion": said("returned\n")}) == ("returned\n", "")
    assert show(capsys, MESSAGE, BEGUN, {"completion": said("")}) == ("", "")


def test_what_is_begun_again_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    again = (MESSAGE, BEGUN, piece("a "), BEGUN, piece("a "), {"completion": said("a b")})
    assert show(capsys, *again) == ("a \na b\n", "(begun again: its worker has ended)\n")
    assert show(capsys, *again, live=False) == ("a b\n", "(begun again: its worker has ended)\n")


def test_tools_are_named_between_the_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    call = proto.ToolCall(call_id="1", name="search\x1b")
    ended = proto.ToolCall(call_id="1", name="search", result=to_value(1))
    shown = (MESSAGE, BEGUN, piece("a "), {"tool_call": call}, {"tool_call": ended}, {"completion": said("a b")})
    assert show(capsys, *shown) == ("a \nb\n", "(search\\x1b …)\n")
    assert show(capsys, *shown, live=False) == ("a b\n", "")


def test_a_terminal_is_not_steered(capsys: pytest.CaptureFixture[str]) -> None:
    steering = (MESSAGE, BEGUN, piece("\x1b[2J"), {"completion": said("\x1b[2J")})
    assert show(capsys, *steering)[0] == "\\x1b[2J\n"
    # A program gets what was said.
    assert show(capsys, *steering, live=False)[0] == "\x1b[2J\n"


def test_events_on_a_line() -> None:
    assert detail(proto.Event(message=said("a\nb"))) == "a b"
    assert detail(proto.Event(state=proto.StateChange(version=2))) == "version 2"
    assert detail(proto.Event(failure=proto.Failure(reason="R", message="no"))) == "R: no"
    assert detail(proto.Event(tool_call=proto.ToolCall(name="t", error="e"))) == 't {"error": "e"}'
    assert detail(proto.Event(cancellation=proto.Cancellation())) == detail(proto.Event()) == ""
