"""Desired state, and making it true: which agents run, with how many workers, on what."""

import asyncio
import collections
import contextlib
import time
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any

from agentruntime import errors, log, names

from agent_pool import enforcement
from agent_pool.changes import Changes
from agent_pool.deployment import Asked, Deployment, Program, RunRequest, Spec
from agent_pool.drivers.base import Driver, Prepared
from agent_pool.health import HealthPolicy
from agent_pool.images.catalog import Catalog, OpenImage
from agent_pool.keeper import Keeper
from agent_pool.ledger import Ledger, Reservation
from agent_pool.resources import Requested, resolve
from agent_pool.settings import PoolSettings
from agent_pool.state import Saved, SavedDeployment, StateFile
from agent_pool.worker import Worker

DEFAULT_GRACE_S = 30.0
# How many workers start at a time.
_STARTS = 8
# Changes that nobody waits for are saved together.
_SAVE_DELAY_S = 0.25
_SAVE_RETRY_S = 2.0
_log = log.get("agent_pool")


class Pool:
    """The agents of one machine."""

    def __init__(
        self, settings: PoolSettings, driver: Driver, ledger: Ledger, catalog: Catalog, state: StateFile
    ) -> None:
        self._settings = settings
        self.driver = driver
        self.ledger = ledger
        self.catalog = catalog
        self.changes = Changes()
        self._state = state
        self._next_index = 0
        self._deployments: dict[str, Deployment] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._starting = asyncio.Semaphore(_STARTS)
        self._closing = False
        # Of runs in flight.
        self._held_digests: collections.Counter[str] = collections.Counter()
        self._unsaved = asyncio.Event()
        self._saver = asyncio.create_task(self._keep_saved())
        self._keeper = Keeper(
            driver, ledger, settings.restart_policy, changed=self._on_change, drain_delay_s=settings.drain_delay_s
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
            if worker_id in deployment.workers:
                return deployment, deployment.workers[worker_id]
        raise errors.WorkerNotFound(f"worker '{worker_id}' not found; `agent ps` lists them")

    def digests_in_use(self) -> set[str]:
        running = {each.spec.image_digest for each in self._deployments.values() if not each.stopped}
        return running | set(+self._held_digests)

    # --- run -----------------------------------------------------------------------------------------------------

    async def run(self, request: RunRequest) -> Deployment:
        """Makes an agent run as asked; goes on if the caller is cancelled. See the proto's RunAgent.

        Raises:
            AgentError: as the proto says; nothing of this request is left then.
        """
        if self._closing:
            raise errors.Unavailable("the pool is stopping")
        return await asyncio.shield(self._spawn(self._run(request)))

    async def _run(self, request: RunRequest) -> Deployment:
        with self._held(self.catalog.find(request.image).digest):
            return await self._run_image(request)

    @contextlib.contextmanager
    def _held(self, digest: str) -> Iterator[None]:
        """Keeps an image that no agent is known to use yet."""
        self._held_digests[digest] += 1
        try:
            yield
        finally:
            self._held_digests[digest] -= 1

    async def _run_image(self, request: RunRequest) -> Deployment:
        opened = await self.catalog.open(request.image)
        agent = names.check_agent_name(request.agent or opened.manifest.name)
        async with self._lock(agent):
            running = self._deployments.get(agent)
            if running is not None and not running.stopped:
                _check_same(running, opened, request.asked)
                replicas = (running.replicas or 1) if request.replicas is None else request.replicas
                await self._scale(running, replicas)
                return running
            deployment = self._new_deployment(agent, opened, request, running)
            replicas = request.replicas if request.replicas is not None else (running and running.replicas) or 1
            await self._begin(deployment, replicas, running, request)
            return deployment

    def _new_deployment(
        self, agent: str, opened: OpenImage, request: RunRequest, before: Deployment | None
    ) -> Deployment:
        asked = request.asked
        resources = resolve(asked.resources, Requested.of_manifest(opened.manifest.resources))
        notes = enforcement.notes(self.driver.enforcement(), resources, allow_unenforced=request.allow_unenforced)
        section = opened.manifest.health
        policy = HealthPolicy(section.interval_s, section.timeout_s, section.retries, section.start_timeout_s)
        index = before.spec.agent_index if before else self._new_index()
        spec = Spec(
            agent=agent,
            number=before.spec.number + 1 if before else 1,
            agent_index=index,
            image=opened.image.reference,
            image_digest=opened.image.digest,
            bundle=str(opened.bundle),
            program=Program.of(opened.manifest),
            asked=asked,
            resources=resources,
            health=asked.health.over(policy),
        )
        return Deployment(spec, replicas=0, notes=tuple(notes), begun=False, before=before)

    async def _begin(
        self, deployment: Deployment, replicas: int, before: Deployment | None, request: RunRequest
    ) -> None:
        """Starts an agent that does not run; if that fails, everything is as it was."""
        agent = deployment.agent
        workers = deployment.new_workers(replicas)
        self.ledger.reserve((worker.worker_id for worker in workers), deployment.spec.resources)
        self._deployments[agent] = deployment
        try:
            revision = deployment.spec.revision()
            await self.driver.check(revision)
            deployment.prepared = await self.driver.prepare(revision)
            if deployment.prepared.degraded and request.asked.network == "isolated":
                why = deployment.prepared.degraded[0]
                enforcement.refuse("network isolation", why, allow_unenforced=request.allow_unenforced)
            deployment.replicas = replicas
            self._on_change(agent)
            await self._start_all(deployment, workers)
        except BaseException:
            deployment.replicas = 0
            await self.driver.release(deployment.spec.revision())
            for worker in workers:
                self.ledger.release(worker.worker_id)
            if before is not None:
                self._deployments[agent] = before
            else:
                del self._deployments[agent]
            self._on_change(agent)
            raise
        deployment.begun, deployment.before = True, None
        await self._save()

    async def _scale(self, deployment: Deployment, replicas: int) -> None:
        """Brings a running agent to so many workers; if one fails to start, it stays at what it had."""
        more = replicas - len(deployment.living())
        before, deployment.replicas = deployment.replicas, replicas
        if more > 0:
            try:
                # Reserved at once or not at all, before anything is started.
                workers = deployment.new_workers(more)
                try:
                    self.ledger.reserve((worker.worker_id for worker in workers), deployment.spec.resources)
                except BaseException:
                    for worker in workers:
                        del deployment.workers[worker.worker_id]
                    raise
                # The desired number goes to disk while they start; where they are follows by itself.
                saving = self._spawn(self._save())
                await self._start_all(deployment, workers)
                await saving
            except BaseException:
                deployment.replicas = before
                self._on_change(deployment.agent)
                raise
        for worker in deployment.surplus():
            self._spawn(self._keeper.stop(deployment, worker, DEFAULT_GRACE_S))
        if replicas < before:
            self._on_change(deployment.agent)
            await self._save()

    async def _start_all(self, deployment: Deployment, workers: list[Worker]) -> None:
        """Starts them side by side. If one fails, all of them are removed again, and its error is raised."""

        async def start(worker: Worker) -> None:
            async with self._starting:
                await self._keeper.start(deployment, worker)

        tasks = [asyncio.create_task(start(worker)) for worker in workers]
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
            for worker in workers:
                await self._keeper.abandon(deployment, worker)
            raise

    # --- stop ----------------------------------------------------------------------------------------------------

    async def stop(self, name: str, grace_s: float) -> list[str]:
        """Stops an agent or one of its workers; goes on if the caller is cancelled. Returns the workers' ids.

        Raises:
            NotFound: there is neither.
        """
        if name in self._deployments:
            return await asyncio.shield(self._spawn(self._stop_agent(name, grace_s)))
        try:
            deployment, worker = self.worker(name)
        except errors.WorkerNotFound:
            raise errors.NotFound(f"there is no agent or worker '{name}'; `agent ps` lists them") from None
        return await asyncio.shield(self._spawn(self._stop_worker(deployment, worker, grace_s)))

    async def _stop_agent(self, agent: str, grace_s: float) -> list[str]:
        async with self._lock(agent):
            deployment = self.get(agent)
            deployment.stopped = True
            workers = list(deployment.workers.values())
            self._on_change(agent)
            await self._stop_all(deployment, workers, grace_s)
            await self.driver.release(deployment.spec.revision())
            await self._save()
            return sorted(worker.worker_id for worker in workers)

    async def _stop_worker(self, deployment: Deployment, worker: Worker, grace_s: float) -> list[str]:
        async with self._lock(deployment.agent):
            if worker.wanted:
                deployment.replicas = max(0, deployment.replicas - 1)
            await self._stop_all(deployment, [worker], grace_s)
            await self._save()
            return [worker.worker_id]

    async def _stop_all(self, deployment: Deployment, workers: Iterable[Worker], grace_s: float) -> None:
        stops = [asyncio.create_task(self._keeper.stop(deployment, worker, grace_s)) for worker in workers]
        if stops:
            await asyncio.wait(stops)
            for stop in stops:
                stop.result()

    # --- life of the pool itself ---------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Takes up the desired state from disk: adopts the workers that still run, and starts the missing ones."""
        saved = self._state.load()
        self._next_index = saved.next_index
        restored = [entry.restored() for entry in saved.deployments]
        running = [deployment for deployment in restored if not deployment.stopped]
        for deployment in restored:
            if deployment.stopped:
                deployment.workers.clear()
            self._deployments[deployment.agent] = deployment
        launches = {
            worker.worker_id: deployment.launch(worker)
            for deployment in running
            for worker in deployment.workers.values()
        }
        handles = {
            worker.worker_id: worker.handle for deployment in running for worker in deployment.workers.values()
        }
        revisions: dict[str, Prepared] = {each.spec.revision().key: each.prepared for each in running}
        adopted = {each.worker_id: each for each in await self.driver.recover(revisions, launches, handles)}
        for deployment in running:
            resources = deployment.spec.resources
            for worker in deployment.workers.values():
                if each := adopted.get(worker.worker_id):
                    worker.runs(each)
                    reservation = Reservation(resources.cpu_millis, resources.memory_bytes, worker.gpus)
                    self.ledger.adopt(worker.worker_id, reservation)
            deployment.new_workers(max(0, deployment.replicas - len(deployment.workers)))
            for worker in deployment.workers.values():
                self._keeper.resume(deployment, worker)
        if adopted:
            _log.info("took over workers", worker_ids=sorted(adopted))

    async def close(self, grace_s: float) -> None:
        """Drains and stops every worker. What is desired stays on disk."""
        self._closing = True
        for task in list(self._background):
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        stops = [
            self._stop_all(deployment, list(deployment.workers.values()), grace_s)
            for deployment in self._deployments.values()
        ]
        await asyncio.gather(*stops)
        self._saver.cancel()
        await asyncio.wait([self._saver])
        await self._save()
        await self.driver.close()
        self._state.close()

    def sample_cpu(self) -> None:
        """Keeps the CPU meters going, so that a percentage is one of the last few seconds. Blocks for a moment."""
        for deployment in list(self._deployments.values()):
            for worker in list(deployment.workers.values()):
                if worker.meter is not None and worker.pid:
                    worker.meter.percent(time.monotonic(), self.driver.cpu_s(worker.worker_id))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, errors.AgentError):
            _log.error("unforeseen error", exc_info=error)

    def _lock(self, agent: str) -> asyncio.Lock:
        return self._locks.setdefault(agent, asyncio.Lock())

    def _new_index(self) -> int:
        self._next_index += 1
        return self._next_index - 1

    def _on_change(self, agent: str) -> None:
        self.changes.publish(agent)
        self._unsaved.set()

    async def _keep_saved(self) -> None:
        """Saves what nobody waits for: where restarted workers are."""
        while True:
            await self._unsaved.wait()
            await asyncio.sleep(_SAVE_DELAY_S)
            if self._unsaved.is_set():
                try:
                    await self._save()
                except Exception as error:
                    # A full disk must not end the saving: the next round tries again.
                    _log.error("the pool's state could not be saved", exc_info=error)
                    self._unsaved.set()
                    await asyncio.sleep(_SAVE_RETRY_S)

    async def _save(self) -> None:
        self._unsaved.clear()
        # Of an agent that has not begun to run, what was before.
        known = (each if each.begun else each.before for each in self.deployments())
        deployments = [SavedDeployment.of(deployment) for deployment in known if deployment]
        await self._state.save(Saved.model_construct(next_index=self._next_index, deployments=deployments))


def _check_same(running: Deployment, opened: OpenImage, asked: Asked) -> None:
    """Raises FailedPrecondition unless the request is about what runs already."""
    agent = running.agent
    if opened.image.digest != running.spec.image_digest:
        raise errors.FailedPrecondition(
            f"agent '{agent}' runs {running.spec.image} ({running.spec.image_digest[:19]}), not "
            f"{opened.image.reference} "
            f"({opened.image.digest[:19]}); `agent stop {agent}` first, or give this one another name"
        )
    if changed := asked.differs_from(running.spec.asked):
        raise errors.FailedPrecondition(
            f"agent '{agent}' runs with another {', '.join(changed)}; `agent stop {agent}` first"
        )
