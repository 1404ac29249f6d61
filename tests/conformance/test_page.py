"""The page of the conformance suite names what the suite asks for, neither more nor less."""

import importlib
from pathlib import Path

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


def test_what_was_not_run_is_never_passed() -> None:
    said = page.render({("It does", "native"): "yes"})
    assert "| It does | yes | not run |" in said
