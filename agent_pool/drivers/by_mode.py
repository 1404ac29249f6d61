"""The drivers of a pool as one: each worker is the business of the driver of its revision's mode."""

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

from agentruntime import errors

from agent_pool.cgroups.base import Limits
from agent_pool.drivers.base import Driver, Enforcement, Exit, Launch, Prepared, Revision, Running, Stats


class DriversByMode(Driver):
    """Processes and containers.

    Args:
        native: launches processes.
        container: launches containers.
        preferred: the mode of agents for which nobody asked one; "" chooses containers where an engine answers.
    """

    name = "by mode"

    def __init__(self, native: Driver, container: Driver, preferred: str) -> None:
        self._by_mode = {"native": native, "container": container}
        self._preferred = preferred
        # Who has which worker, by key.
        self._owners: dict[str, Driver] = {}

    async def enforcement(self, mode: str) -> list[Enforcement]:
        return await self._by_mode[mode].enforcement(mode)

    async def choose(self) -> str:
        return self._preferred or await self._by_mode["container"].choose()

    async def check(self, revision: Revision) -> None:
        await self._of(revision).check(revision)

    async def prepare(self, revision: Revision) -> Prepared:
        return await self._of(revision).prepare(revision)

    async def rest(self, revision: Revision) -> None:
        await self._of(revision).rest(revision)

    async def release(self, revision: Revision) -> None:
        await self._of(revision).release(revision)

    def warm(self) -> Collection[str]:
        return [key for driver in self._by_mode.values() for key in driver.warm()]

    async def start(self, launch: Launch) -> Running:
        driver = self._owners[launch.key] = self._of(launch.revision)
        return await driver.start(launch)

    async def wait(self, key: str) -> Exit:
        return await self._owners[key].wait(key)

    async def stop(self, key: str, grace_s: float) -> Exit:
        driver = self._owners.get(key)
        return await driver.stop(key, grace_s) if driver else Exit("it never ran")

    async def limit(self, key: str, limits: Limits) -> None:
        driver = self._owners.get(key)
        if driver is None:
            raise errors.FailedPrecondition(f"worker {key} does not run now; try again")
        await driver.limit(key, limits)

    async def debug(self, key: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await self._owners[key].debug(key)

    async def destroy(self, key: str) -> None:
        driver = self._owners.get(key)
        if driver is not None:
            await driver.destroy(key)
            if self._owners.get(key) is driver:
                del self._owners[key]

    async def recover(
        self,
        revisions: Mapping[str, Prepared],
        launches: Mapping[str, Launch],
        handles: Mapping[str, Mapping[str, Any]],
    ) -> list[Running]:
        found: list[Running] = []
        for mode, driver in self._by_mode.items():
            own = {key: each for key, each in launches.items() if each.revision.mode == mode}
            for running in await driver.recover(revisions, own, handles):
                self._owners[running.key] = driver
                found.append(running)
        return found

    def cpu_s(self, key: str) -> float:
        driver = self._owners.get(key)
        return driver.cpu_s(key) if driver else 0.0

    def stats(self, key: str, *, share: bool = False) -> Stats:
        driver = self._owners.get(key)
        return driver.stats(key, share=share) if driver else Stats()

    async def close(self) -> None:
        for driver in self._by_mode.values():
            await driver.close()

    def _of(self, revision: Revision) -> Driver:
        return self._by_mode[revision.mode]
