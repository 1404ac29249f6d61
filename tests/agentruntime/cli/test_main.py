"""The command as a whole: help, usage, completion."""

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import agentruntime
import pytest
from agentruntime.cli import main as main_module
from agentruntime.cli.verbs import VERBS, help_text

from tests.agentruntime.cli.conftest import Agent

HEAVY = ("grpc", "google", "pydantic", "yaml", "rich", "typer", "structlog", "psutil", "asyncio")


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = (
        "import sys; from agentruntime.cli.main import main; "
        f"status = main({argv!r}); print([name for name in {HEAVY!r} if name in sys.modules], status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == help_text() + "[] 0\n"


def test_the_table_is_what_the_verbs_say() -> None:
    folder = Path(main_module.__file__).parent
    shared = {"__init__", "main", "verbs", "failure", "output", "platform", "settings", "deployment", "grace", "dev"}
    shared |= {"figures", "screen", "connection", "passphrase", "transcript"}
    assert {path.stem for path in folder.glob("*.py")} - shared == set(VERBS)
    for verb, line in VERBS.items():
        module = import_module(f"agentruntime.cli.{verb}")
        if not hasattr(module, "COMMANDS"):
            assert str(inspect.getdoc(module.command)).splitlines()[0] == line


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_and_output(agent: Agent, verb: str) -> None:
    result = agent(verb, "--help")
    assert result.status == 0
    assert VERBS[verb] in " ".join(result.out.split())
    inner = getattr(import_module(f"agentruntime.cli.{verb}"), "COMMANDS", {})
    for command in ([verb, name] for name in inner) if inner else [[verb]]:
        assert "--output" in agent(*command, "--help").out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["frob"], "No such command 'frob'; see `agent --help`"),
        (["stat"], "status"),
        (["start"], "No such command 'start'; did you mean `agent run`?"),
        (["start", "run"], "did you mean `agent run`?"),
        (["-o", "json", "rm", "x"], "did you mean `agent stop`?"),
        (["list"], "did you mean `agent ps`?"),
        (["help"], "did you mean `agent --help`?"),
        (["run"], "Missing argument 'IMAGE'; see `agent run --help`"),
        (["ps", "--nonsense"], "No such option: --nonsense; see `agent ps --help`"),
        (["ps", "extra"], "extra"),
        (["-o", "yaml", "ps"], "yaml"),
        (["call", "a", "b", "--temperature", "3"], "--temperature"),
        (["up", "--grpc-port", "70000"], "65535"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(agent: Agent, argv: list[str], says: str) -> None:
    result = agent(*argv)
    assert result.status == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert says in result.err


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        (["call", "a", b"\xff"], b"", "argument 3 is not UTF-8"),
        (["call", b"\xff", "x"], b"", "argument 2 is not UTF-8"),
        ([b"\xff"], b"", "argument 1 is not UTF-8"),
        (["call", "a"], b"caf\xe9", "the prompt on stdin is not UTF-8"),
        (
            ["call", "a", "--service", "S", "--method", "M", "--data", '{"name": "\\ud800"}'],
            b"",
            "half of a UTF-16 pair",
        ),
    ],
)
def test_bytes_that_are_no_text(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, arguments: list[str | bytes], stdin: bytes, says: str
) -> None:
    monkeypatch.setenv("UAPI_ENDPOINT", endpoint)
    program = Path(sys.executable).with_name("agent")
    # Which of the two Python does with stdin depends on the locale.
    for treatment in ("surrogateescape", "strict"):
        monkeypatch.setenv("PYTHONIOENCODING", f"utf-8:{treatment}")
        done = subprocess.run([program, *arguments], input=stdin, capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (13, b"", 1)
        assert says in done.stderr.decode()


def test_version(agent: Agent) -> None:
    assert agentruntime.__version__ in agent("version").out
    assert f'"version": "{agentruntime.__version__}"' in agent("--output", "json", "version").out
    assert f'"version": "{agentruntime.__version__}"' in agent("version", "-o", "json").out


@pytest.mark.parametrize(
    ("line", "word", "offered"),
    [
        ("agent st", 1, ["status", "stop"]),
        ("agent ", 1, list(VERBS)),
        ("agent run --me", 2, ["--memory", "--memory-limit"]),
        ("agent --output json ps --ag", 4, ["--agent", "--agents"]),
    ],
)
def test_completion(
    agent_process: Agent, monkeypatch: pytest.MonkeyPatch, line: str, word: int, offered: list[str]
) -> None:
    # As the shell's script calls it: without arguments.
    monkeypatch.setenv("_AGENT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(word))
    result = agent_process()
    # Verbs with verbs of their own come last.
    assert (result.status, sorted(result.out.split()), result.err) == (0, sorted(offered), "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_of_other_shells(agent_process: Agent, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_AGENT_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "agent st")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    result = agent_process()
    assert VERBS["stop"] in result.out
    assert VERBS["run"] not in result.out


@pytest.mark.parametrize("argv", [[], ["version"], ["init", "my-agent"], ["doctor"]])
def test_a_reader_that_goes_away(argv: list[str]) -> None:
    program = Path(sys.executable).with_name("agent")
    with subprocess.Popen([program, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        # Before anything is written: starting an interpreter takes longer than this line.
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, "")
