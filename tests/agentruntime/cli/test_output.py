"""What commands print."""

import json
import sys

import pytest
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli import output

from tests.agentruntime.platform_services import worker


def test_messages_as_data() -> None:
    data = output.as_data(worker())
    assert data["worker_id"] == "my-agent-01"
    assert data["state"] == "WORKER_STATE_READY"
    assert data["usage"]["memory_bytes"] == 5_000_000_000
    assert data["reason"] == ""
    assert data["started_at"] == "2023-11-14T22:13:20Z"
    assert json.loads(json.dumps(data)) == data


def test_nested_and_repeated_numbers() -> None:
    deployment = pool_pb2.Deployment(agent="a", workers=[worker(), worker()])
    data = output.as_data(deployment)
    assert [item["usage"]["memory_bytes"] for item in data["workers"]] == [5_000_000_000] * 2


def test_a_table_keeps_whole_cells_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["A", "B"], [["x" * 100, "[red]" + "y" * 100]])
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["A", "B"]
    assert row.split() == ["x" * 100, "[red]" + "y" * 100]


def test_what_steers_a_terminal_is_written_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert output.harmless("a\x1b[2J\r\tb\nä\x9b") == "a\\x1b[2J\\x0d\tb\nä\\x9b"
    assert output.harmless("\u202eabc\u2066\u2028\ud800") == "\\u202eabc\\u2066\\u2028\\ud800"
    # Spaces that do not break, and the joiner of emoji.
    assert output.harmless("1\u00a0000\u202f€ 👩\u200d🚀") == "1\u00a0000\u202f€ 👩\u200d🚀"
    output.note("error: \x1b]0;x\x07")
    assert capsys.readouterr().err == "error: \x1b]0;x\x07\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    output.note("error: \x1b]0;x\x07\nline")
    assert capsys.readouterr().err == "error: \\x1b]0;x\\x07\nline\n"


def test_json_has_no_character_that_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    said = {"text": "\x1b\x9b31m\x7f\u202e\ud800 ä\n\t"}
    output.print_json(said)
    output.print_json_line(said)
    pretty = capsys.readouterr().out
    assert pretty.count("\n") == 4
    assert pretty.count(r"\u001b\u009b31m\u007f\u202e\ud800 ä\n\t") == 2
    assert json.loads(output.json_line(said)) == said


def test_progress_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("working"):
        pass
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
