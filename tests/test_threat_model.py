"""The threat model names tests that exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs/threat-model.md"


def test_each_threat_has_its_tests() -> None:
    rows = [
        row
        for row in PAGE.read_text().splitlines()
        if row.startswith("| ") and not row.startswith(("| who", "| ---"))
    ]
    assert rows
    for row in rows:
        named = re.findall(r"`([^`]+)`", row.split("|")[4])
        assert named, row
        assert [name for name in named if not _is_there(*name.partition("::")[::2])] == []


def _is_there(file: str, test: str) -> bool:
    path = TESTS / file
    return path.is_file() and bool(re.search(rf"^(async )?def {re.escape(test)}\(", path.read_text(), re.MULTILINE))
