"""`python -m benchmarks.chaos`: kills everything once under load, and prints what the clients saw.

200 calls a second and 50 open streams over four workers. Exits with status 1 if a call failed that must not.
"""

import argparse
import asyncio
import sys

from benchmarks.chaos import course, stage


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("phases", nargs="*", metavar="PHASE", help=f"of {', '.join(stage.PHASES)}; all by default")
    parser.add_argument("--short", action="store_true", help="about 10 seconds instead of a minute")
    given = parser.parse_args()
    phases = tuple(given.phases) or stage.PHASES
    if unknown := [name for name in phases if name not in stage.PHASES]:
        parser.error(f"no such phase: {', '.join(unknown)}")
    grid, bars = asyncio.run(course.measure(stage.SHORT if given.short else stage.FULL, phases))
    print(grid.render(), bars.render(), sep="\n")
    if missed := [row.what for row in bars.rows if row.missed]:
        sys.exit("missed its bar: " + "; ".join(missed))


if __name__ == "__main__":
    main()
