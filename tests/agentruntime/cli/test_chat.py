"""`agent chat`, through pipes and on a terminal."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from agentruntime import errors
from agentruntime.cli import chat
from agentruntime.cli.chat import readable_id

from tests.agentruntime.cli.conftest import Agent
from tests.agentruntime.conversation_service import Log
from tests.agentruntime.platform_services import Record
from tests.waiting import until


@pytest.fixture
def log(record: Record) -> Log:
    return record.log


def test_one_message(agent: Agent, log: Log) -> None:
    result = agent("chat", "helper", "--conversation", "first", "--message", "hello there")
    assert (result.status, result.out, result.err) == (0, "HELLO THERE \n", "")
    assert log.events["first"][0].message.parts[0].text == "hello there"


def test_a_new_conversation_says_how_to_go_on(agent: Agent, log: Log) -> None:
    result = agent("chat", "helper", "--message", "hello")
    (made,) = log.events
    assert result.err == f"go on with: agent chat helper --conversation {made}\n"
    assert re.fullmatch(r"[a-z]+-[a-z]+-[a-z2-9]{5}", made)
    assert len({readable_id() for _ in range(1000)}) == 1000


def test_each_line_of_a_pipe_is_a_message(agent: Agent, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\nreturn two\nthree"))
    result = agent("chat", "helper", "--conversation", "first")
    assert (result.status, result.out) == (0, "ONE \nreturn two\nTHREE \n")
    assert len({event.message_id for event in log.events["first"]}) == 3


def test_events_as_json(agent: Agent, log: Log) -> None:
    result = agent("chat", "helper", "--conversation", "first", "--message", "hello there", "-o", "json")
    events = [json.loads(line) for line in result.out.splitlines()]
    assert [event["sequence"] for event in events] == [1, 2, 3, 4, 5]
    assert events[2]["chunk"]["text"] == "HELLO "
    assert events[-1]["completion"]["parts"][0]["text"] == "HELLO THERE "


def test_what_is_no_text_is_named(agent: Agent) -> None:
    out = agent("chat", "helper", "--conversation", "first", "--message", "part").out
    assert out == '{"n": 1}[a.png, image/png, 2kB][http://b]\n'


def test_errors_are_a_sentence(agent: Agent, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    result = agent("chat", "helper", "--message", "fail")
    # An operator gets the agent's traceback.
    assert (result.status, result.err.splitlines()[1:]) == (13, ["error: I do not like this", "at x"])
    log.breaks = [(0, errors.NoConversations("helper holds no conversations; it has no on_message"))]
    result = agent("chat", "helper", "--message", "x")
    assert (result.status, result.err) == (19, "error: helper holds no conversations; it has no on_message\n")
    for argv in (("--message", " "), ("--conversation", "ä", "--message", "x")):
        result = agent("chat", "helper", *argv)
        assert (result.status, result.err.count("\n")) == (13, 1)
    # The first message that fails is the last one.
    monkeypatch.setattr("sys.stdin", io.StringIO("fail\nhello\n"))
    assert agent("chat", "helper", "--conversation", "second").out == ""
    assert len({event.message_id for event in log.events["second"]}) == 1
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert agent("chat", "helper").err.startswith("error: stdin has no message")


def test_twice_ctrl_c_at_the_prompt_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    typed: Iterator[str | type[KeyboardInterrupt]] = iter(
        [KeyboardInterrupt, "one", KeyboardInterrupt, " ", KeyboardInterrupt, KeyboardInterrupt]
    )

    def type_next(_prompt: str) -> str:
        said = next(typed)
        if isinstance(said, str):
            return said
        raise said

    monkeypatch.setattr("builtins.input", type_next)
    lines = chat._typed(as_json=True)
    assert next(lines) == "one"
    with pytest.raises(KeyboardInterrupt):
        next(lines)
    assert list(typed) == []


class Terminal:
    """A process on a terminal."""

    def __init__(self, process: "subprocess.Popen[bytes]", end: int) -> None:
        self.process = process
        self._end = end
        self.seen = ""

    def until(self, text: str) -> str:
        """Reads until the text was written; what was written up to there, since the last one."""
        while text not in self.seen:
            try:
                read = os.read(self._end, 4096)
            except OSError:
                # Linux says so where the other end is closed.
                read = b""
            assert read, f"{text!r} was not written: {self.seen!r}"
            self.seen += read.decode()
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())


@contextmanager
def on_a_terminal(endpoint: str, *argv: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    program = Path(sys.executable).with_name("agent")
    # Without a terminal's own way of reading, in which readline would redraw what is typed.
    environment = {**os.environ, "UAPI_ENDPOINT": endpoint, "TERM": "dumb"}
    # Ctrl-C reaches whom the terminal is that of.
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", str(program), *argv],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0):
        try:
            yield Terminal(process, ours)
            assert process.wait(20) is not None
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(20)


@pytest.mark.integration
def test_on_a_terminal(endpoint: str, log: Log, agent: Agent) -> None:
    assert agent("chat", "helper", "--conversation", "first", "--message", "hello there").status == 0
    with on_a_terminal(endpoint, "chat", "helper", "--conversation", "first") as terminal:
        shown = terminal.until("leaves\r\n> ")
        assert "> hello there\r\nHELLO THERE \r\nconversation first with helper; Ctrl-C" in shown
        terminal.type("a b\r")
        terminal.until("A B \r\n")
        terminal.type("fail\r")
        terminal.until("error: I do not like this")
        terminal.type("wait here\r")
        terminal.until("WAIT HERE ")
        terminal.type("\x03")
        terminal.until("(cancelled)")
        terminal.until("> ")
        terminal.type("\x04")
        terminal.until("go on with: agent chat helper --conversation first")
    assert terminal.process.returncode == 0
    assert log.running("first") == []


@pytest.mark.integration
def test_what_still_runs_is_followed_and_twice_ctrl_c_leaves(endpoint: str, log: Log, agent: Agent) -> None:
    with on_a_terminal(endpoint, "chat", "helper") as terminal:
        made = re.search(r"conversation (\S+) with helper", terminal.until("leaves\r\n> "))
        assert made
        terminal.type("wait here\r")
        terminal.until("HERE ")
        # The agent does not mind being cancelled.
        log.ignores_cancel = True
        terminal.type("\x03")
        until(lambda: "CancelMessage" in [method for method, _ in log.calls])
        terminal.type("\x03")
        terminal.until("go on with")
    assert terminal.process.returncode == 130
    with on_a_terminal(endpoint, "chat", "helper", "--conversation", made[1]) as terminal:
        terminal.until("> wait here\r\n")
        terminal.until("HERE ")
        log.release(made[1])
        # Only there a Ctrl-D is for the prompt.
        terminal.until("leaves\r\n> ")
        terminal.type("\x04")
        terminal.until("go on with")
