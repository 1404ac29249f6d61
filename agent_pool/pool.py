"""Desired state, and making it true: which agents run, with how many workers, on what."""

import asyncio
import collections
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, TypeVar

from agentruntime import errors, log, names

from agent_pool import recovery, usage
from agent_pool.asked import AskedPolicies
from agent_pool.changes import Changes
from agent_pool.crew import Crew
from agent_pool.deployment import DEFAULT_GRACE_S, Deployment, RunRequest
from agent_pool.drivers.base import Driver
from agent_pool.images.catalog import Catalog
from agent_pool.keeper import Keeper
from agent_pool.ledger import Ledger
from agent_pool.loading import Loader, admission
from agent_pool.logs import LogPolicy
from agent_pool.rolling import Rolls
from agent_pool.running import Runs
from agent_pool.saving import Saver
from agent_pool.scaling.load import LoadBook
from agent_pool.scaling.sleep import Sleep
from agent_pool.secrets.vault import Vault
from agent_pool.settings import PoolSettings
from agent_pool.state import SavedDeployment, StateStore
from agent_pool.updates import Updates
from agent_pool.worker import Worker

Result = TypeVar("Result")
_log = log.get("agent_pool")


class Pool:
    """The agents of one machine.

    What changes an agent holds its lock; what a caller waits for goes on if the caller hangs up.
    """

    def __init__(
        self,
        settings: PoolSettings,
        driver: Driver,
        ledger: Ledger,
        catalog: Catalog,
        state: StateStore,
        *,
        vault: Vault,
    ) -> None:
        self._settings = settings
        self.driver = driver
        self.ledger = ledger
        self.catalog = catalog
        self.changes = Changes()
        # How much the agents are called.
        self.book = LoadBook()
        self.vault = vault
        admit = admission(catalog, vault)
        self.loader = Loader(driver, admit)
        self._state = state
        self._saver = Saver(state, self._saved)
        self._next_index = 0
        self._deployments: dict[str, Deployment] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._closing = False
        # Of runs in flight.
        self._held_digests: collections.Counter[str] = collections.Counter()
        self._keeper = Keeper(driver, ledger, settings.backoff, changed=self.announce, heard=self._heard, admit=admit)
        self._crew = Crew(ledger, self._keeper)
        self._runs = Runs(self, self._crew)
        self.updates = Updates(self, Rolls(self, self._crew, self._keeper))
        self.sleeping = Sleep(
            self,
            self._crew,
            self._keeper,
            self._saver,
            backoff=settings.backoff,
            warm_templates=settings.warm_templates,
        )

    # --- what is there -------------------------------------------------------------------------------------------

    def deployments(self) -> list[Deployment]:
        return [self._deployments[name] for name in sorted(self._deployments)]

    def find(self, agent: str) -> Deployment | None:
        return self._deployments.get(agent)

    def get(self, agent: str) -> Deployment:
        """Raises AgentNotFound."""
        if agent not in self._deployments:
            raise errors.AgentNotFound(agent)
        return self._deployments[agent]

    def worker(self, worker_id: str) -> tuple[Deployment, Worker]:
        """Raises WorkerNotFound."""
        for deployment in self._deployments.values():
            if worker := deployment.named(worker_id):
                return deployment, worker
        raise errors.WorkerNotFound(f"worker '{worker_id}' not found; `agent ps` lists them")

    def named(self, name: str) -> tuple[Deployment, Worker | None]:
        """An agent, or one of its workers with it. Raises NotFound."""
        if name in self._deployments:
            return self._deployments[name], None
        with contextlib.suppress(errors.WorkerNotFound):
            return self.worker(name)
        raise errors.NotFound(f"there is no agent or worker '{name}'; `agent ps` lists them")

    def digests_in_use(self) -> set[str]:
        """Of the images that agents run from, or can be rolled back to."""
        kept = {
            spec.image_digest
            for deployment in self._deployments.values()
            if not deployment.stopped
            for spec in deployment.revisions.values()
        }
        return kept | set(+self._held_digests)

    # --- run -----------------------------------------------------------------------------------------------------

    async def run(self, request: RunRequest) -> Deployment:
        """Makes an agent run as asked. See the proto's RunAgent.

        Raises:
            AgentError: as the proto says; nothing of this request is left then.
        """
        return await self.finish(self._runs.run(request))

    # --- how many ------------------------------------------------------------------------------------------------

    async def bring(self, deployment: Deployment, replicas: int) -> None:
        """Brings an agent, whose lock is held, to so many workers, the youngest draining; 0 puts it to sleep.

        Returns when new workers are ready. If one fails to start, the agent stays at what it had.

        Raises:
            AgentError: as RunAgent.
        """
        if replicas == 0:
            await self.sleeping.fall(deployment)
            return
        before = (deployment.replicas, deployment.asleep)
        if before == (replicas, False) and len(deployment.living()) == replicas:
            return
        deployment.replicas, deployment.asleep = replicas, False
        more = deployment.target - len(deployment.living())
        workers: list[Worker] = []
        if more > 0:
            try:
                # Reserved at once or not at all, before anything is started.
                workers = self._crew.enlist(deployment, more)
                # Where they are is on disk, too: a pool that takes over ends workers that it does not know.
                await self._crew.start(deployment, workers, partial(self._saver.save, deployment.agent))
                self.sleeping.awake(deployment)
            except BaseException:
                # Also if the disk is full: what is refused does not run.
                await self._crew.abandon(deployment, workers)
                deployment.replicas, deployment.asleep = before
                self.announce(deployment.agent)
                raise
        for worker in deployment.surplus():
            self.spawn(self._keeper.stop(deployment, worker, DEFAULT_GRACE_S))
        self.announce(deployment.agent)
        if not workers:
            await self._saver.save(deployment.agent)

    @contextlib.asynccontextmanager
    async def policies(
        self, deployment: Deployment, asked: AskedPolicies, replicas: int | None = None
    ) -> AsyncIterator[None]:
        """Puts policies in force, of an agent whose lock is held; if what is done within fails, they are as before.

        They are on disk at the end of it.

        Raises:
            InvalidArgument: a value that makes no sense, or policies that do not allow so many `replicas`.
        """
        before = deployment.asked
        try:
            if deployment.take_up(asked):
                self.announce(deployment.agent)
            if replicas is not None:
                deployment.policies.scaling.check_replicas(replicas)
            yield
            if deployment.asked != before:
                await self.save(deployment.agent)
        except BaseException:
            if deployment.asked != before:
                deployment.asked = before
                deployment.take_up(AskedPolicies())
                self.announce(deployment.agent)
            raise

    async def adjust(self, agent: str, replicas: int) -> int:
        """Brings an agent that is awake to so many workers, or as near as there is room; says how many they are now.

        Raises:
            AgentError: there is no room for one more, or a worker failed to start.
        """
        async with self.lock(agent):
            deployment = self.get(agent)
            if deployment.target:
                living = len(deployment.living())
                room = self.ledger.room(deployment.spec.resources)
                await self.bring(deployment, min(replicas, living + max(1, room)))
            return deployment.target

    async def sleep_if(self, agent: str, still: Callable[[], bool]) -> None:
        """Puts an agent to sleep if that is `still` to be done once nothing else changes it."""
        async with self.lock(agent):
            deployment = self.get(agent)
            if deployment.target and still():
                await self.sleeping.fall(deployment)

    async def wake(self, agent: str) -> Deployment:
        """See `Sleep.wake`."""
        if self._closing:
            raise errors.Unavailable("the pool is stopping")
        return await self.sleeping.wake(agent)

    def startable(self, agent: str) -> Deployment:
        """One that runs or sleeps.

        Raises:
            AgentNotFound, AgentStopped: there is none, or an operator stopped it.
        """
        deployment = self.get(agent)
        if deployment.stopped:
            command = names.run_command(deployment.spec.image, agent)
            raise errors.AgentStopped(f"agent '{agent}' is stopped; start it with `{command}`")
        return deployment

    # --- stop ----------------------------------------------------------------------------------------------------

    async def stop(self, name: str, grace_s: float) -> list[str]:
        """Stops an agent or one of its workers. Returns the workers' ids.

        Raises:
            NotFound: there is neither.
        """
        deployment, worker = self.named(name)
        if worker is None:
            return await self.finish(self._stop_agent(name, grace_s))
        return await self.finish(self._stop_worker(deployment, worker, grace_s))

    async def _stop_agent(self, agent: str, grace_s: float) -> list[str]:
        async with self.lock(agent):
            deployment = self.get(agent)
            deployment.stopped, deployment.asleep = True, False
            workers = list(deployment.workers.values())
            self.announce(agent)
            await self._crew.stop(deployment, workers, grace_s)
            for number in deployment.revisions:
                await self.driver.release(deployment.revision(number))
            await self._saver.save(agent)
            return sorted({worker.worker_id for worker in workers})

    async def _stop_worker(self, deployment: Deployment, worker: Worker, grace_s: float) -> list[str]:
        async with self.lock(deployment.agent):
            if worker.wanted and worker.key in deployment.workers:
                if deployment.replicas > 1:
                    deployment.replicas -= 1
                elif not deployment.stopped:
                    self.sleeping.mark(deployment)
            stopping = self.spawn(self._crew.stop(deployment, [worker], grace_s))
            await self._saver.save(deployment.agent)
        # Not under the lock: a call must be able to wake the agent meanwhile.
        await stopping
        await self._saver.save(deployment.agent)
        return [worker.worker_id]

    # --- life of the pool itself ---------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Takes up the desired state from disk: adopts the workers that still run, and starts the missing ones."""
        for deployment in await recovery.recover(self._state.load(), self.driver, self.ledger, self._keeper):
            self._deployments[deployment.agent] = deployment
            self._next_index = max(self._next_index, deployment.spec.agent_index + 1)
            self.loader.recall(deployment)
            if deployment.roll is not None:
                self.spawn(self.updates.resume(deployment))
        if any(worker.address for deployment in self._deployments.values() for worker in deployment.workers.values()):
            # They were routed to, and whoever does must hear of a drain before it begins.
            self.changes.expect()

    async def _heard(self) -> None:
        if not self._closing:  # then the gateway has ended first
            await self.changes.routed()
        await asyncio.sleep(self._settings.drain_delay_s)

    async def close(self, grace_s: float) -> None:
        """Drains and stops every worker, those too that drain already. What is desired stays on disk."""
        self._closing = True
        for task in list(self._background):
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        await asyncio.gather(
            *(
                # Those that have ended for good stay so.
                self._crew.stop(deployment, [each for each in deployment.workers.values() if not each.rests], grace_s)
                for deployment in self._deployments.values()
            )
        )
        await self._saver.close()
        await self.driver.close()

    def sample_usage(self) -> None:
        """Keeps the meters going, so that rates are those of the last few seconds. Blocks for a moment."""
        for deployment in list(self._deployments.values()):
            for worker in list(deployment.workers.values()):
                if (meter := worker.meter) is not None and worker.pid:
                    meter.rates(time.monotonic(), self.driver.cpu_s(worker.key), usage.network(worker.pid))

    def suspect(self, worker_id: str, reason: str) -> None:
        """Has a worker's health asked at once, because somebody has seen it fail."""
        with contextlib.suppress(errors.WorkerNotFound):  # it has ended meanwhile
            _, worker = self.worker(worker_id)
            _log.info("worker is suspected", worker_id=worker_id, reason=reason)
            worker.ask_now.set()

    def log_policy(self, agent: str) -> LogPolicy:
        """How an agent's logs are kept and sent; by default, where only its logs are left."""
        deployment = self.find(agent)
        return deployment.log_policy if deployment is not None else LogPolicy()

    def note_logs(self, agent: str, trouble: str) -> None:
        """Says of an agent why its log lines cannot be sent; "" once they can."""
        deployment = self.find(agent)
        if deployment is not None and deployment.log_trouble != trouble:
            deployment.log_trouble = trouble
            self.announce(agent)

    # --- for the parts of the pool -------------------------------------------------------------------------------

    def lock(self, agent: str) -> asyncio.Lock:
        """Held by whatever changes an agent."""
        return self._locks.setdefault(agent, asyncio.Lock())

    def announce(self, agent: str) -> None:
        """Tells watchers that an agent changed, and has it saved soon."""
        self.changes.publish(agent)
        self._saver.soon(agent)

    async def save(self, agent: str) -> None:
        """Has an agent on disk as it is now."""
        await self._saver.save(agent)

    def spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Does something in the background, until the pool closes."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)
        return task

    async def finish(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Does something that goes on if the caller is cancelled.

        Raises:
            Unavailable: the pool is stopping.
        """
        if self._closing:
            work.close()
            raise errors.Unavailable("the pool is stopping")
        task = self.spawn(work)
        await asyncio.wait([task])
        if task.cancelled():
            raise errors.Unavailable("the pool is stopping")
        return task.result()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, errors.AgentError):
            _log.error("unforeseen error", exc_info=error)

    @contextlib.contextmanager
    def held(self, digest: str) -> Iterator[None]:
        """Keeps an image that no agent is known to use yet."""
        self._held_digests[digest] += 1
        try:
            yield
        finally:
            self._held_digests[digest] -= 1

    def put(self, agent: str, deployment: Deployment | None) -> None:
        """Makes an agent what it is from now on; None for gone."""
        if deployment is None:
            del self._deployments[agent]
        else:
            self._deployments[agent] = deployment
        self.announce(agent)

    def new_index(self) -> int:
        """Of a new agent; tells its uids apart."""
        self._next_index += 1
        return self._next_index - 1

    def _saved(self, agent: str) -> SavedDeployment | None:
        known = self._deployments.get(agent)
        if known is not None and not known.begun:
            known = known.before
        return SavedDeployment.of(known) if known is not None else None
