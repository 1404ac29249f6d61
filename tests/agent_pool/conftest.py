"""A pool per test, and proof that it leaves nothing behind."""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from agentruntime.home import Home

from tests.agent_pool.harness import RunningPool


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """With a path so short that a home's sockets lie below it, and go with it. The pool's log is beside it."""
    with tempfile.TemporaryDirectory(prefix="uapi-pool-") as directory:
        path = Path(directory, "h")
        path.mkdir(mode=0o700)
        yield path


@pytest.fixture
async def pool(short_directory: Path) -> AsyncIterator[RunningPool]:
    running = RunningPool(Home(short_directory), {**os.environ, "AGENT_POOL_DRAIN_DELAY_S": "0"})
    await running.start()
    try:
        yield running
    finally:
        await running.end()
    assert running.leftovers() == []
