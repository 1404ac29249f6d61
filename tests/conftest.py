"""What all tests share: the container engine, and a loud word where there is none."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import base_image, postgresql
from tests.engine import Engine, NoEngineError, address

# For all that the tests start: agents are processes, unless a test asks for containers. What a test says of its own
# environment goes before it.
os.environ["AGENT_RUNTIME_MODE"] = "native"
# A shell has what it starts in the background ignore this, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes says more of what runs beside it.
settings.register_profile("beside others", deadline=None)
settings.load_profile("beside others")
_WHY = pytest.StashKey[str]()
# Tests that use an engine here and there; by directory or file below this one.
_OF_CONTAINERS = ("conformance", "escape", "test_engine.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of containers, which run beside all others."""
    here = Path(__file__).parent
    for item in items:
        if "engine" in getattr(item, "fixturenames", ()) or item.path.relative_to(here).parts[0] in _OF_CONTAINERS:
            item.add_marker("containers")


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A container engine that answers, with the tests' base image. What needs one is not run where there is none."""
    with contextlib.ExitStack() as stack:
        try:
            where = stack.enter_context(address())
        except NoEngineError as error:
            request.config.stash[_WHY] = str(error)
            pytest.skip(f"no container engine: {error}")
        bare = Engine(where, "")
        with contextlib.closing(bare.client()) as client:
            reference = base_image.ensure(client)
        made = Engine(where, reference)
        before = made.agents_images()
        yield made
        # Only now: a test's image is quickly made as long as another one has its layers.
        made.remove_images(made.agents_images() - before)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[postgresql.Server]:
    """A PostgreSQL, of which every test takes a database of its own."""
    with postgresql.serving() as server:
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if why := config.stash.get(_WHY, None):
        terminalreporter.section("CONTAINERS WERE NOT TESTED", sep="!", red=True, bold=True)
        terminalreporter.line(why, red=True)
