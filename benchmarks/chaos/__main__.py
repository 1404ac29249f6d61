"""`python -m benchmarks.chaos`: kills everything once under load, and prints what the clients saw.

200 calls a second and 50 open streams over four workers; then, as the phase `talks`, 200 conversations. Exits with
status 1 if a call failed that must not, or something that was acknowledged is lost.
"""

import argparse
import asyncio
import sys

from benchmarks.chaos import course, stage, talks
from tests import postgresql

_TALKS = "talks"
_PHASES = (*stage.PHASES, _TALKS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("phases", nargs="*", metavar="PHASE", help=f"of {', '.join(_PHASES)}; all by default")
    parser.add_argument("--short", action="store_true", help="about 10 seconds instead of a minute")
    given = parser.parse_args()
    phases = tuple(given.phases) or _PHASES
    if unknown := [name for name in phases if name not in _PHASES]:
        parser.error(f"no such phase: {', '.join(unknown)}")
    tables = []
    if calls := tuple(name for name in phases if name != _TALKS):
        grid, bars = asyncio.run(course.measure(stage.SHORT if given.short else stage.FULL, calls))
        print(grid.render(), bars.render(), sep="\n", flush=True)
        tables.append(bars)
    if _TALKS in phases:
        tables.append(asyncio.run(talks.measure(talks.SHORT if given.short else talks.FULL)))
        print(tables[-1].render(), flush=True)
        with postgresql.serving() as server:
            plan = talks.SHORT_DATABASE if given.short else talks.FULL_DATABASE
            tables.append(talks.judged(asyncio.run(talks.play_on_database(plan, server))))
        print(tables[-1].render())
    if missed := [row.what for table in tables for row in table.rows if row.missed]:
        sys.exit("missed its bar: " + "; ".join(missed))


if __name__ == "__main__":
    main()
