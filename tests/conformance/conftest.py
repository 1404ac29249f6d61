"""The drivers that the suite runs over, and the table of what it found: `pytest tests/conformance --write-page`."""

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from tests.conformance import page
from tests.conformance.stage import CONTAINER, MODES, Stage, stage

_TIMEOUT_S = 300
_RESULTS = pytest.StashKey[page.Results]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-page", action="store_true", help="write what the conformance suite finds to its page")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RESULTS] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and "stage" in item.fixturenames:
            # The first test of a driver also waits for its platform, and for the first container image.
            item.add_marker(pytest.mark.timeout(_TIMEOUT_S))


@pytest.fixture(scope="session", params=list(MODES), name="stage")
def _stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A platform whose agents are of one driver; the container engine is the tests'."""
    driver: str = request.param
    engine = request.getfixturevalue("engine") if driver == CONTAINER else None
    with stage(driver, engine) as made:
        yield made


@pytest.fixture
def refused(request: pytest.FixtureRequest) -> Any:
    """Says in the table that a driver refuses what it cannot do here, and why."""

    def say(why: str) -> None:
        request.node.user_properties.append((page.REFUSED, why))

    return say


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if isinstance(item, pytest.Function) and "stage" in item.fixturenames:
        page.enter(item.config.stash[_RESULTS], item.function, str(item.callspec.params["stage"]), report)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--write-page", default=False):
        page.write(session.config.stash[_RESULTS])
