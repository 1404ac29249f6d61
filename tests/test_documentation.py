"""Whoever starts at the README finds every page, and no link leads nowhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DECISIONS = ROOT / "docs/decisions"
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def links(page: Path) -> list[str]:
    return [link for link in LINK.findall(page.read_text()) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_has_every_page() -> None:
    known = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}
    assert [page.name for page in ROOT.glob("docs/*.md") if page not in known] == []
    assert DECISIONS / "README.md" in known


def test_the_index_has_every_decision_by_its_title() -> None:
    index = (DECISIONS / "README.md").read_text()
    listed = dict(re.findall(r"^- \[\d{4}\]\((.+?)\) (.+)$", index, re.MULTILINE))
    titles = {}
    for page in sorted(DECISIONS.glob("0*.md")):
        heading = page.read_text().partition("\n")[0]
        titles[page.name] = re.sub(r"^# \d{4}:? ", "", heading)
    assert listed == titles
