"""A pool whose workers take their time to drain: what is asked of it meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agentruntime import errors
from agentruntime.home import Home

from agent_pool.deployment import RunRequest
from agent_pool.drivers.base import Exit
from agent_pool.images.catalog import Catalog
from agent_pool.ledger import Capacity, Ledger
from agent_pool.lifecycle import State
from agent_pool.pool import Pool
from agent_pool.secrets.vault import Vault
from agent_pool.settings import PoolSettings
from agent_pool.state import StateStore
from tests.agent_pool.patients import Hospital
from tests.waiting import eventually


class Ward(Hospital):
    """Its workers drain until `over` is set, or one is given no grace."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.over = asyncio.Event()

    async def stop(self, key: str, grace_s: float) -> Exit:
        self._call(f"stop {key}")
        if not grace_s:
            self.over.set()
        await self.over.wait()
        return await super().stop(key, grace_s)

    async def destroy(self, key: str) -> None:
        self._call(f"destroy {key}")
        await super().destroy(key)


@pytest.fixture
async def driver(short_directory: Path) -> Ward:
    return Ward(short_directory)


@pytest.fixture
async def pool(short_directory: Path, driver: Ward) -> AsyncIterator[Pool]:
    home = Home(short_directory)
    home.create()
    ledger = Ledger(Capacity(2000, 10**10))
    state, vault = StateStore(home.state / "pool"), Vault(home.state / "pool", home.secrets_key)
    made = Pool(PoolSettings(drain_delay_s=0), driver, ledger, Catalog(home, [], set), state, vault=vault)
    await made.catalog.prepare()
    yield made
    driver.over.set()
    if not made._closing:
        await made.close(1.0)
    assert ledger.reserved().cpu_millis == 0


async def test_a_run_beside_a_worker_that_drains_knows_of_it(pool: Pool, driver: Ward) -> None:
    before = await pool.run(RunRequest("echo"))
    [old] = before.workers.values()
    # As a pool finds it that takes over from one that was killed within a stop.
    before.stopped = True
    stopping = asyncio.create_task(pool._keeper.stop(before, old, 30.0))
    await eventually(lambda: old.state is State.DRAINING)
    after = await pool.run(RunRequest("echo"))
    [new] = after.ready()
    assert new.key != old.key
    assert pool.ledger.holding(old.key)
    driver.over.set()
    await stopping
    assert list(after.workers.values()) == [new]
    assert f"destroy {new.key}" not in driver.calls
    assert pool.ledger.holding(new.key)


async def test_a_pool_that_stops_lets_those_drain_that_drain_already(pool: Pool, driver: Ward) -> None:
    deployment = await pool.run(RunRequest("echo"))
    [worker] = deployment.workers.values()
    stopping = asyncio.create_task(pool.stop("echo", 30.0))
    await eventually(lambda: f"stop {worker.key}" in driver.calls)
    closing = asyncio.create_task(pool.close(30.0))
    with pytest.raises(errors.Unavailable, match="the pool is stopping"):
        await stopping
    assert not closing.done()
    assert f"destroy {worker.key}" not in driver.calls
    driver.over.set()
    await closing
    assert driver.calls.count(f"stop {worker.key}") == 1
    assert deployment.workers == {}


async def test_a_pool_that_stops_gives_those_that_drain_no_more_than_its_own_grace(pool: Pool, driver: Ward) -> None:
    deployment = await pool.run(RunRequest("echo"))
    [worker] = deployment.workers.values()
    stopping = asyncio.create_task(pool.stop("echo", 30.0))
    await eventually(lambda: f"stop {worker.key}" in driver.calls)
    await pool.close(0.01)
    with pytest.raises(errors.Unavailable):
        await stopping
    assert driver.calls.count(f"stop {worker.key}") == 2
    assert deployment.workers == {}


async def test_an_agent_wakes_while_its_last_worker_drains_that_was_stopped(pool: Pool, driver: Ward) -> None:
    deployment = await pool.run(RunRequest("echo"))
    [old] = deployment.workers.values()
    stopping = asyncio.create_task(pool.stop("echo-01", 30.0))
    await eventually(lambda: f"stop {old.key}" in driver.calls)
    assert deployment.asleep
    async with asyncio.timeout(5.0):
        await pool.wake("echo")
    assert not stopping.done()
    [new] = deployment.ready()
    driver.over.set()
    assert await stopping == ["echo-01"]
    assert list(deployment.workers.values()) == [new]
    assert not deployment.asleep
