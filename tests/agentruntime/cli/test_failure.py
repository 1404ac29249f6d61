"""How commands fail."""

import sys
from typing import NoReturn

import pytest
from agentruntime import errors, status
from agentruntime.cli import failure
from agentruntime.home import Home


def raising(error: BaseException) -> NoReturn:
    raise error


@pytest.mark.parametrize("cls", [cls for cls in status.CODES if cls is not errors.AgentError])
def test_an_error_of_the_platform(cls: type[errors.AgentError], capsys: pytest.CaptureFixture[str]) -> None:
    number = status.CODES[cls].value[0]
    assert failure.guarded(lambda: raising(cls("it is so; do this"))) == 10 + number
    assert capsys.readouterr().err == "error: it is so; do this\n"


def test_an_agent_s_traceback_stands_below(capsys: pytest.CaptureFixture[str]) -> None:
    error = errors.AgentFailed("my-agent failed to import\nTraceback (most recent call last):\nImportError: no")
    assert failure.guarded(lambda: raising(error)) == 19
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "error: my-agent failed to import"
    assert rest == ["Traceback (most recent call last):", "ImportError: no"]


def test_an_agent_s_failure_does_not_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    failure.guarded(lambda: raising(errors.AgentFailed("no\x1b[2J\nTraceback\x9b")))
    assert capsys.readouterr().err == "error: no\\x1b[2J\nTraceback\\x9b\n"


def test_what_nobody_foresaw_is_one_line_and_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert failure.guarded(lambda: raising(ZeroDivisionError("division by zero"))) == 1
    text = capsys.readouterr().err
    log = Home.default().logs / "cli.log"
    assert text == f"error: ZeroDivisionError: division by zero; this is a bug, and its traceback is in {log}\n"
    assert "Traceback" in log.read_text()


def test_ctrl_c_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert failure.guarded(lambda: raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == ""


def test_success() -> None:
    assert failure.guarded(lambda: 0) == 0
