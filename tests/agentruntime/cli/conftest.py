"""How commands are run in tests: in this process, or as the real `agent`."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from agentruntime.cli.main import main


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


Agent = Callable[..., Result]


@pytest.fixture
def agent(endpoint: str, monkeypatch: pytest.MonkeyPatch, agent_inside: Agent) -> Agent:
    """Runs a command line in this process against the server of `record`."""
    monkeypatch.setenv("UAPI_ENDPOINT", endpoint)
    return agent_inside


@pytest.fixture
def agent_inside(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Agent:
    """Runs a command line in this process, which saves the half second of its imports."""
    monkeypatch.setattr("agentruntime.cli.output._default", "table")

    def run(*argv: str) -> Result:
        status = main(list(argv))
        captured = capfd.readouterr()
        return Result(status, captured.out, captured.err)

    return run


@pytest.fixture
def agent_process() -> Agent:
    """Runs the installed `agent` command."""

    def run(*argv: str, stdin: str = "") -> Result:
        program = Path(sys.executable).with_name("agent")
        done = subprocess.run([program, *argv], input=stdin, capture_output=True, text=True, timeout=60, check=False)
        return Result(done.returncode, done.stdout, done.stderr)

    return run
