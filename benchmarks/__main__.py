"""`python -m benchmarks [NAME …]`: runs the named benchmarks, or all, and prints a table for each.

Exits with status 1 if a figure misses its bar.
"""

import argparse
import asyncio
import sys

from benchmarks import (
    cache,
    cli,
    container,
    conversations,
    density,
    failover,
    hop,
    hostile,
    scale,
    sleeping,
    start,
    throughput,
    turns,
    wake,
)
from benchmarks.table import Table

ALL = {
    "hop": hop.measure,
    "start": start.measure,
    "wake": wake.measure,
    "sleeping": sleeping.measure,
    "scale": scale.measure,
    "failover": failover.measure,
    "cache": cache.measure,
    "throughput": throughput.measure,
    "density": density.measure,
    "cli": cli.measure,
    "container": container.measure,
    "turns": turns.measure,
    "conversations": conversations.measure,
    "hostile": hostile.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ALL)}; all by default")
    names = parser.parse_args().names or list(ALL)
    if unknown := [name for name in names if name not in ALL]:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    tables: list[Table] = []
    for name in names:
        table = asyncio.run(ALL[name]())
        print(table.render(), flush=True)
        tables.append(table)
    if missed := [row.what for table in tables for row in table.rows if row.missed]:
        sys.exit("missed its bar: " + "; ".join(missed))


if __name__ == "__main__":
    main()
