"""`agent secrets`: what it reads, and that no value is printed."""

import io
import sys
from pathlib import Path

import pytest
from agentruntime._proto.uapi.v1 import secret_service_pb2 as pb

from tests.agentruntime.cli.conftest import Agent
from tests.agentruntime.platform_services import Record


class Piped:
    """A stdin that is no terminal."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)

    def isatty(self) -> bool:
        return False


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", Piped(content))


def test_a_value_comes_from_a_pipe(agent: Agent, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, b"sk-0123456789\n")
    result = agent("secrets", "set", "openai", "--agents", "a, b")
    assert record.requests == [pb.SetSecretRequest(name="openai", value=b"sk-0123456789", agents=["a", "b"])]
    assert result.out == "set openai for a, b\n"
    assert "agent restart b" in result.err
    assert "sk-" not in result.out + result.err


def test_a_value_comes_from_a_file_as_it_is(agent: Agent, record: Record, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\x00short\n")
    result = agent("secrets", "set", "a/openai", "--from-file", str(tmp_path / "key"))
    assert record.requests == [pb.SetSecretRequest(name="a/openai", value=b"\x00short\n")]
    assert "shorter than 8 bytes" in result.err


def test_a_value_is_asked_for_without_showing_it(
    agent: Agent, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("agentruntime.cli.secrets.getpass.getpass", lambda prompt, stream: "sk-0123456789")
    assert agent("secrets", "set", "openai", "--agents", "*").status == 0
    assert record.requests == [pb.SetSecretRequest(name="openai", value=b"sk-0123456789", agents=["*"])]


def test_the_agents_alone(agent: Agent, record: Record) -> None:
    assert agent("secrets", "set", "openai", "--keep-value", "--agents", "a").status == 0
    assert record.requests == [pb.SetSecretRequest(name="openai", agents=["a"])]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["set", ".."], "is not the name of a secret"),
        (["set", "a", "--from-file", "none"], "none cannot be read"),
        (["set", "a", "--from-file", "none", "--keep-value"], "exclude each other"),
        (["set", "a"], "is empty"),
    ],
)
def test_what_is_refused(
    agent: Agent, record: Record, monkeypatch: pytest.MonkeyPatch, argv: list[str], says: str
) -> None:
    piped(monkeypatch, b"\n")
    result = agent("secrets", *argv)
    assert (result.status, result.out, result.err.count("\n")) == (13, "", 1)
    assert says in result.err
    assert record.requests == []


@pytest.mark.parametrize(
    "argv",
    [["openai", "sk-0123456789"], ["openai=sk-0123456789"], ["openai", "--agents", "a", "--", "sk-0123456789"]],
)
def test_a_value_that_is_an_argument_is_refused_without_being_repeated(
    agent: Agent, record: Record, argv: list[str]
) -> None:
    result = agent("secrets", "set", *argv)
    assert (result.status != 0, result.out, result.err.count("\n")) == (True, "", 1)
    assert "never an argument" in result.err
    assert "--from-file" in result.err
    assert "sk-" not in result.err
    assert record.requests == []


def test_list_and_delete(agent: Agent, record: Record) -> None:
    header, row = agent("secrets", "list").out.splitlines()
    assert header.split()[:2] == ["SECRET", "AGENTS"]
    assert row.split() == ["openai", "a,", "b", "1970-01-01", "00:00", "b"]
    assert agent("secrets", "delete", "openai").out == "deleted openai\n"
    assert record.requests[-1] == pb.DeleteSecretRequest(name="openai")
