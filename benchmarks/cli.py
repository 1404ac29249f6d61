"""cli: how long `agent --help` takes, beside an interpreter that does nothing."""

import os
import statistics
import subprocess
import sys
import time

from benchmarks.platform import AGENT
from benchmarks.table import Table

_RUNS = 21


async def measure() -> Table:
    ours: list[float] = []
    nothing: list[float] = []
    for _ in range(_RUNS):
        ours.append(_milliseconds([str(AGENT), "--help"]))
        nothing.append(_milliseconds([sys.executable, "-c", "pass"]))
    table = Table("cli", f"Wall time of a whole process, {_RUNS} interleaved pairs.")
    table.add("agent --help, median", statistics.median(ours[1:]), "ms", 200)
    table.add("python -c pass, median", statistics.median(nothing[1:]), "ms")
    return table


def _milliseconds(argv: list[str]) -> float:
    started = time.perf_counter()
    # Bytecode is written, as it is by default: the first run pays for it and is not counted.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=environment)
    return (time.perf_counter() - started) * 1000
