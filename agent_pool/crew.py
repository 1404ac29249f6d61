"""Several workers at a time: reserved together, started side by side, ended together."""

import asyncio
from collections.abc import Collection, Iterable

from agent_pool.deployment import Deployment
from agent_pool.keeper import Keeper, Placed
from agent_pool.ledger import Ledger
from agent_pool.worker import Worker


class Crew:
    """The workers of all deployments of a pool."""

    def __init__(self, ledger: Ledger, keeper: Keeper) -> None:
        self._ledger = ledger
        self._keeper = keeper

    def enlist(
        self,
        deployment: Deployment,
        count: int,
        *,
        revision: int = 0,
        places: Collection[int] = (),
        avoid: Collection[str] = (),
    ) -> list[Worker]:
        """New pending workers with their reservations: all of them or none. See `Deployment.new_workers`.

        Raises:
            InsufficientResources, FailedPrecondition: as the ledger says.
        """
        workers = deployment.new_workers(count, revision=revision, places=places, avoid=avoid)
        try:
            resources = deployment.revisions[revision or deployment.current].resources
            self._ledger.reserve((worker.key for worker in workers), resources)
        except BaseException:
            for worker in workers:
                del deployment.workers[worker.key]
            raise
        return workers

    async def start(self, deployment: Deployment, workers: Collection[Worker], placed: Placed | None = None) -> None:
        """Starts them side by side. If one fails, all of them are removed again, and its error is raised.

        `placed` is called for each: see `Keeper.start`.
        """
        tasks = [asyncio.create_task(self._keeper.start(deployment, worker, placed)) for worker in workers]
        if not tasks:
            return
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            failed = [task for task in done if task.exception()]
            if failed:
                failed[0].result()
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self.abandon(deployment, workers)
            raise

    async def abandon(self, deployment: Deployment, workers: Iterable[Worker]) -> None:
        """Ends and removes them at once, whatever they do."""
        for worker in workers:
            await self._keeper.abandon(deployment, worker)

    async def stop(self, deployment: Deployment, workers: Iterable[Worker], grace_s: float) -> None:
        """Drains them side by side; returns when nothing of them is left."""
        stops = [asyncio.create_task(self._keeper.stop(deployment, worker, grace_s)) for worker in workers]
        if stops:
            await asyncio.wait(stops)
            for stop in stops:
                stop.result()
