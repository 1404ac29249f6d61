"""A pool whose workers are health servers in this process, on the images that a pool has anyway."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from agentruntime.home import Home

from agent_pool.images.catalog import Catalog
from agent_pool.ledger import Capacity, Ledger
from agent_pool.pool import Pool
from agent_pool.secrets.vault import Vault
from agent_pool.settings import PoolSettings
from agent_pool.state import SavedDeployment, StateStore
from tests.agent_pool.patients import Hospital


class Clinic:
    """Of one pool, its driver, and what it has on disk."""

    def __init__(self, directory: Path, driver: Hospital) -> None:
        home = Home(directory)
        home.create()
        self.driver = driver
        self._state = StateStore(home.state)
        catalog = Catalog(home, [], set)
        ledger, vault = Ledger(Capacity(2000, 10**10)), Vault(home.state, home.secrets_key)
        self.pool = Pool(PoolSettings(drain_delay_s=0), driver, ledger, catalog, self._state, vault=vault)

    def on_disk(self, agent: str = "echo") -> SavedDeployment:
        """What a pool that takes over would know of an agent."""
        [saved] = [each for each in self._state.load() if each.agent == agent]
        return saved


@contextlib.asynccontextmanager
async def clinic(directory: Path, driver: Hospital | None = None) -> AsyncIterator[Clinic]:
    """It has the built-in images."""
    made = Clinic(directory, driver or Hospital(directory))
    await made.pool.catalog.prepare()
    try:
        yield made
    finally:
        await made.pool.close(0.0)
