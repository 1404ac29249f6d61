"""density: the memory of idle workers."""

import statistics

from benchmarks.platform import platform
from benchmarks.presence import smaps
from benchmarks.table import Table

_WORKERS = 50
_MB = 1e6


async def measure() -> Table:
    async with platform() as running:
        deployment = await running.run("echo", _WORKERS)
        usages = [smaps(worker.pid) for worker in deployment.workers]
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
