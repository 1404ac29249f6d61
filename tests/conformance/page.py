"""docs/conformance.md: what the suite asks for, a behaviour a row, and what each driver did, a driver a column."""

import inspect
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.stage import MODES

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
# The name under which a test notes that a driver refused, and why.
REFUSED = "refused"
# By behaviour and driver.
Results = dict[tuple[str, str], str]
_HEAD = """\
# Conformance

Agents behave the same as processes and as containers: `tests/conformance/` is one suite that runs over both drivers,
through the commands and RPCs that users have. This table is written by it
(`pytest tests/conformance --write-page`), from a run on {system}.

- **yes**: it was tested, and is so.
- **refused**: this machine cannot enforce it, and the request fails with the reason.
- **not run**: there was no container engine for the tests.

"""


def behaviour(test: Callable[..., Any]) -> str:
    """What a test asks for: the first paragraph of what it says of itself, on one line."""
    return " ".join((inspect.getdoc(test) or "").split("\n\n")[0].split()).rstrip(".")


def enter(results: Results, test: Callable[..., Any], driver: str, report: pytest.TestReport) -> None:
    """Takes up one of the reports of a test: of its set-up, its call or its end."""
    cell = (behaviour(test), driver)
    if report.failed:
        results[cell] = "**no**"
    elif report.skipped:
        results[cell] = "not run"
    elif report.when == "call":
        why = str(dict(report.user_properties).get(REFUSED, ""))
        # "… cannot be enforced on this machine: WHY; leave it out …"
        results[cell] = f"refused: {why.partition(' machine: ')[2].partition(';')[0] or why}" if why else "yes"


def render(results: Results) -> str:
    rows = list(dict.fromkeys(row for row, _ in results))
    lines = [f"| | {' | '.join(MODES)} |", "| --- |" + " --- |" * len(MODES)]
    for row in rows:
        cells = [results.get((row, driver), "not run").replace("|", "\\|") for driver in MODES]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    system = f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"
    return _HEAD.format(system=system) + "\n".join(lines) + "\n"


def write(results: Results) -> None:
    PAGE.write_text(render(results))


def rows() -> list[str]:
    """The behaviours that the page names."""
    cells = [
        line.split(" | ")[0].removeprefix("| ") for line in PAGE.read_text().splitlines() if line.startswith("| ")
    ]
    return [cell for cell in cells if cell not in ("|", "---", "")]
