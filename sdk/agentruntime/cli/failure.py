"""How a command fails: one line on stderr that says what to do, and an exit status that a script can test.

0 done · 1 unforeseen · 2 wrong usage · 10 + gRPC's code number, an error of the platform · 130 interrupted ·
141 the reader of the output went away
"""

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

from typer import Abort
from typer.exceptions import TyperException

from agentruntime import errors
from agentruntime.cli import output
from agentruntime.cli.verbs import MEANT
from agentruntime.home import Home

UNFORESEEN = 1
USAGE = 2
PLATFORM = 10
INTERRUPTED = 130
BROKEN_PIPE = 141
VALUE_AS_ARGUMENT = "a secret's value is never an argument, which others see; pipe it in, or name --from-file"


class ReaderGone(Exception):
    """Whoever read our output went away. Typer would end the process for a BrokenPipeError, as for a failure."""


def piped(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with `ReaderGone` for a broken pipe."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise ReaderGone from None

    return run


def guarded(run: Callable[[], int]) -> int:
    """What `run` returns, or the exit status for what it raised, after saying so."""
    try:
        status = run()
        sys.stdout.flush()
    except TyperException as error:
        return _say(*_misused(error))
    except errors.AgentError as error:
        from agentruntime import status as codes  # noqa: PLC0415 — because it imports grpc, which few verbs need

        number: int = codes.code_of(error).value[0]
        return _say(error.message, PLATFORM + number)
    except (KeyboardInterrupt, Abort):
        return INTERRUPTED
    except (BrokenPipeError, ReaderGone):
        return reader_gone()
    except Exception as error:
        return _say(f"{type(error).__name__}: {error}; {_keep_traceback()}", UNFORESEEN)
    return status


def _misused(error: TyperException) -> tuple[str, int, str]:
    """What `_say` says of wrong usage."""
    message = error.format_message().rstrip(".?")
    # "agent run" once the verb is known. Only errors of usage have it.
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "agent"
    if path == "agent secrets set" and "unexpected extra argument" in message:
        # They would be repeated.
        message = VALUE_AS_ARGUMENT
    unknown = re.match(r"No such command '([^']*)'", message)
    if unknown and unknown[1] in MEANT:
        # Typer's own guess goes by letters: "status" for "start".
        return unknown[0], USAGE, f"did you mean `agent {MEANT[unknown[1]]}`?"
    return message, USAGE, f"see `{path} --help`"


def reader_gone() -> int:
    """The exit status for it. Python flushes stdout once more at its end; that goes nowhere then."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def _say(message: str, status: int, hint: str = "") -> int:
    """The first line is ours; what follows it, an agent's own traceback, stands below."""
    first, _, rest = message.strip().partition("\n")
    output.note(f"error: {first}" + (f"; {hint}" if hint else ""))
    if rest:
        output.note(rest)
    return status


def _keep_traceback() -> str:
    path = Home.default().logs / "cli.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("a") as log:
            log.write(traceback.format_exc())
    except OSError:
        return "this is a bug"
    return f"this is a bug, and its traceback is in {path}"
