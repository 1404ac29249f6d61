"""density: the memory of idle workers."""

import statistics
from pathlib import Path

from benchmarks.platform import platform
from benchmarks.table import Table

_WORKERS = 50
_MB = 1e6


async def measure() -> Table:
    async with platform() as running:
        deployment = await running.run("echo", _WORKERS)
        usages = [_smaps(worker.pid) for worker in deployment.workers]
    if len(usages) != _WORKERS:
        raise SystemExit(f"{len(usages)} workers are ready, not {_WORKERS}")
    pss = [usage["Pss"] / _MB for usage in usages]
    uss = [sum(size for key, size in usage.items() if key.startswith("Private_")) / _MB for usage in usages]
    table = Table("density", f"Memory of each of {_WORKERS} idle echo workers with default limits and isolation.")
    table.add("PSS, highest", max(pss), "MB", 10)
    table.add("PSS, median", statistics.median(pss), "MB")
    table.add("USS, highest", max(uss), "MB")
    table.add("USS, median", statistics.median(uss), "MB")
    return table


def _smaps(pid: int) -> dict[str, int]:
    """Bytes by kind, of the whole process; proc(5)."""
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, value = line.split(":")
        sizes[key] = int(value.split()[0]) * 1024
    return sizes
