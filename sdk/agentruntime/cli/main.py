"""Entry point of the `agent` command: finds the verb and imports only its module."""

import os
import sys
from importlib import import_module

from agentruntime.cli.verbs import VERBS, help_text


def main(argv: list[str] | None = None) -> int:
    """Runs one command line (the process's if None) and returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    # A shell that asks what can stand next gives no arguments: the line is in the environment, where Typer reads it.
    completing = "_AGENT_COMPLETE" in os.environ
    if argv in (["--help"], ["-h"]) or not (argv or completing):
        # Without Typer, which alone would take a third of the time that help may take.
        return _print_help()
    failure = import_module("agentruntime.cli.failure")
    status: int = failure.guarded(lambda: _run(argv))
    return status


def _print_help() -> int:
    try:
        sys.stdout.write(help_text())
        sys.stdout.flush()
    except BrokenPipeError:
        status: int = import_module("agentruntime.cli.failure").reader_gone()
        return status
    return 0


def _run(argv: list[str]) -> int:
    typer = import_module("typer")
    failure = import_module("agentruntime.cli.failure")
    connection = import_module("agentruntime.cli.connection")
    _check_text(argv)
    app = typer.Typer(name="agent", no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
    app.callback(help="Run AI agents as limited, supervised processes behind a gRPC gateway.")(connection.options)
    named = next((argument for argument in argv if argument in VERBS), None)
    # All of them where none is named: for completion, and to suggest one that was meant.
    for verb in [named] if named else VERBS:
        module = import_module(f"agentruntime.cli.{verb}")
        if commands := getattr(module, "COMMANDS", None):
            # A verb with verbs of its own.
            group = typer.Typer(name=verb, help=VERBS[verb], no_args_is_help=True)
            for name, command in commands.items():
                group.command(name)(failure.piped(command))
            app.add_typer(group)
        else:
            app.command(verb)(failure.piped(module.command))
    result = app(args=argv, prog_name="agent", standalone_mode=False)
    return result if isinstance(result, int) else 0


def _check_text(argv: list[str]) -> None:
    """Python hands over bytes that are not UTF-8 as surrogates, which no message to the platform can hold."""
    for number, argument in enumerate(argv, start=1):
        try:
            argument.encode()
        except UnicodeEncodeError:
            errors = import_module("agentruntime.errors")
            raise errors.InvalidArgument(f"argument {number} is not UTF-8; convert it to UTF-8 first") from None
