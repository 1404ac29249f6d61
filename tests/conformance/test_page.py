"""The page of the conformance suite names what the suite asks for, neither more nor less."""

import importlib
from pathlib import Path
from typing import Literal

import pytest

from tests.conformance import page


def behaviours() -> list[str]:
    found = []
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"tests.conformance.{path.stem}")
        if module.__name__ != __name__:
            tests = [value for name, value in vars(module).items() if name.startswith("test_")]
            found += [page.behaviour(test) for test in tests]
    return found


def test_the_page_names_the_behaviours_of_the_suite() -> None:
    assert sorted(page.rows()) == sorted(behaviours())


def test_each_behaviour_is_a_sentence_of_its_own() -> None:
    named = behaviours()
    assert all(named)
    assert len(set(named)) == len(named)


@pytest.mark.parametrize("other", ["passed", "skipped"])
def test_a_behaviour_fails_with_any_of_its_tests(other: Literal["passed", "skipped"]) -> None:
    results: page.Results = {}
    outcomes: tuple[Literal["passed", "failed", "skipped"], ...] = (other, "failed", other)
    for outcome in outcomes:
        report = pytest.TestReport("t", ("t", None, "t"), {}, outcome, None, "call")
        page.enter(results, test_what_was_not_run_is_never_passed, "native", report)
    assert list(results.values()) == ["**no**"]


def test_what_was_not_run_is_never_passed() -> None:
    """A name for a behaviour."""
    said = page.render({("It does", "native"): "yes"})
    assert "| It does | yes | not run |" in said
