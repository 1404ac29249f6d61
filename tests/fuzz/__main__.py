"""`make fuzz`: new inputs for every parser, for so long; each that breaks a property is kept in the corpus.

By atheris, which is libFuzzer for Python: it looks which lines of our code an input reaches, and goes on from those
that reach new ones.
"""

import argparse
import contextlib
import hashlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

from tests.fuzz.target import LONGEST_S, SCRATCH, Target

# Also of parsers that we use as they come: their branches tell inputs apart.
_INSTRUMENTED = ("agentruntime", "agent_pool", "agent_worker", "uapi_gateway", "tarfile", "yaml")
_MOST_MEMORY_MB = 2048
_LONGEST_INPUT_BYTES = 8192


def main() -> int:
    # Instrumented as it is imported; once, for the processes of all targets.
    with atheris.instrument_imports(include=list(_INSTRUMENTED)):
        from tests.fuzz import corpus
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(corpus.TARGETS)}; all without")
    parser.add_argument("--seconds", type=int, default=10, help="for each target (10)")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - corpus.TARGETS.keys():
        parser.error(f"there is no target {', '.join(sorted(unknown))}; there are {', '.join(corpus.TARGETS)}")
    found = 0
    for name in arguments.targets or corpus.TARGETS:
        directory = corpus.DIRECTORY / name
        said, broken = _fuzz(corpus.TARGETS[name], directory, arguments.seconds)
        print(f"{name:18} {said}", flush=True)
        for data, why in broken:
            found += 1
            kept = directory / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
            kept.write_bytes(data)
            print(
                f"  {why}\n  kept as {os.path.relpath(kept)}; mend it, and say in FOUND.md what it showed", flush=True
            )
    print(f"{found} inputs broke a property" if found else "every property held")
    return 1 if found else 0


def _fuzz(target: Target, directory: Path, seconds: int) -> tuple[str, list[tuple[bytes, str]]]:
    """What to say of it, and the inputs that broke a property, each with how."""
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        # What is new goes into the first directory.
        grown, left, log, tokens = (Path(scratch, name) for name in ("grown", "left", "log", "tokens"))
        grown.mkdir()
        left.mkdir()
        tokens.write_text("".join(f'"{_escaped(token)}"\n' for token in target.tokens))
        options = [
            str(grown), str(directory), f"-max_total_time={seconds}", f"-timeout={2 * LONGEST_S:.0f}",
            f"-rss_limit_mb={_MOST_MEMORY_MB}", f"-artifact_prefix={left}/", f"-dict={tokens}",
            f"-max_len={_LONGEST_INPUT_BYTES}", "-print_final_stats=1",
        ]  # fmt: skip
        status = _in_a_process(log, lambda: _run(target.check, options, scratch, left))
        output = log.read_text(errors="replace")
        broken = [(path.read_bytes(), f"{path.name.partition('-')[0]}: {_cause(output)}") for path in left.iterdir()]
        if status and not broken:
            raise SystemExit(f"{target.name} cannot be fuzzed:\n{output[-2000:]}")
        runs = next((line.split()[-1] for line in output.splitlines() if "number_of_executed_units" in line), "?")
        return f"{runs} inputs in {seconds} s, {len(list(grown.iterdir()))} of them reached something new", broken


def _run(check: Callable[[bytes], None], options: list[str], scratch: str, left: Path) -> None:
    tempfile.tempdir = scratch

    def checked(data: bytes) -> None:
        try:
            check(data)
        except Exception:
            (left / "broken-input").write_bytes(data)
            traceback.print_exc()
            os._exit(1)  # the first is enough

    setup: Any = atheris.Setup
    setup([sys.argv[0], *options], checked)
    atheris.Fuzz()


def _in_a_process(log: Path, run: Callable[[], None]) -> int:
    """The exit status of a fork of this process that runs something, and writes to a file what it says."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        with contextlib.suppress(SystemExit):
            run()
    finally:
        os._exit(1)


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


def _cause(output: str) -> str:
    """The last line of a traceback, or libFuzzer's own word."""
    lines = output.splitlines()
    errors = [line for line in lines if line and not line.startswith((" ", "=", "INFO")) and "Error" in line]
    return (errors or [line for line in lines if "ERROR" in line] or ["it ended"])[0]


if __name__ == "__main__":
    sys.exit(main())
