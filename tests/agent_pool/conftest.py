"""A pool per test, and proof that it leaves nothing behind."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agentruntime.home import Home

from tests.agent_pool.harness import RunningPool


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[RunningPool]:
    home = Home(tmp_path / "home")
    running = RunningPool(home, {**os.environ, "AGENT_POOL_DRAIN_DELAY_S": "0"})
    await running.start()
    try:
        yield running
    finally:
        await running.end()
    assert running.leftovers() == []
