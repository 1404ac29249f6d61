"""Sleep and wake: an agent that sleeps has no process; the next call wakes it, and however many come wake it once."""

import asyncio
import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentruntime import errors, log

from agent_pool import restart
from agent_pool.crew import Crew
from agent_pool.deployment import Deployment
from agent_pool.drivers.base import Revision
from agent_pool.keeper import Keeper
from agent_pool.lifecycle import State
from agent_pool.restart import Backoff
from agent_pool.saving import Saver
from agent_pool.worker import Worker

if TYPE_CHECKING:
    from agent_pool.pool import Pool

# What its workers still do when an agent is put to sleep, they may finish.
_GRACE_S = 30.0
_COULD_NOT_WAKE = "could not wake: "
_log = log.get("agent_pool.sleep")


@dataclass(frozen=True)
class _Failure:
    """A wake that failed, and how long that is the answer to the next ones."""

    error: errors.AgentError
    # In a row.
    count: int
    # Of the event loop's clock.
    until_s: float


class Sleep:
    """Of one pool's agents.

    Args:
        backoff: for how long a wake that failed is not tried again.
        warm_templates: so many of the agents that slept last keep what makes them quick to wake.
    """

    def __init__(
        self, pool: "Pool", crew: Crew, keeper: Keeper, saver: Saver, *, backoff: Backoff, warm_templates: int
    ) -> None:
        self._pool = pool
        self._crew = crew
        self._keeper = keeper
        self._saver = saver
        self._backoff = backoff
        self._warm_templates = warm_templates
        self._waking: dict[str, asyncio.Task[errors.AgentError | None]] = {}
        self._failures: dict[str, _Failure] = {}
        # When agents fell asleep, as a number that only grows.
        self._slept: dict[str, int] = {}
        self._nights = itertools.count(1)
        self._letting_go = asyncio.Lock()

    async def fall(self, deployment: Deployment) -> None:
        """Puts an agent to sleep, whose lock is held; returns when that is on disk. Its workers end later."""
        if deployment.asleep:
            return
        self.mark(deployment)
        for worker in deployment.living():
            self._pool.spawn(self._keeper.stop(deployment, worker, _GRACE_S))
        await self._saver.save(deployment.agent)
        self._pool.spawn(self.let_go())

    def mark(self, deployment: Deployment) -> None:
        """From the news on, calls go where they wake it; only then may its workers drain, so that no call is lost."""
        deployment.asleep = True
        self._slept[deployment.agent] = next(self._nights)
        self._pool.announce(deployment.agent)

    def awake(self, deployment: Deployment) -> None:
        """It has been started: idle time begins anew, and what went wrong with wakes before is forgotten."""
        self._pool.book.touch(deployment.agent)
        self._failures.pop(deployment.agent, None)
        if deployment.status.startswith(_COULD_NOT_WAKE):
            deployment.status = ""

    async def let_go(self) -> None:
        """Has agents that sleep keep no process, but the templates of those that slept last."""
        if self._letting_go.locked():
            return
        async with self._letting_go:
            asleep = self._warm_sleepers()
            for index, (deployment, revision) in enumerate(asleep):
                if not deployment.asleep:
                    continue
                if self._pool.lock(deployment.agent).locked():
                    continue  # it wakes; if not, the next time
                async with self._pool.lock(deployment.agent):
                    if index < len(asleep) - self._warm_templates:
                        await self._pool.driver.release(revision)
                    else:
                        await self._pool.driver.rest(revision)

    def _warm_sleepers(self) -> list[tuple[Deployment, Revision]]:
        """Revisions of agents that sleep and have a template, those that slept first in front."""
        found = []
        for key in self._pool.driver.warm():
            deployment = self._pool.find(key.rpartition("@")[0])
            if deployment is not None and deployment.asleep:
                number = next((each.number for each in deployment.revisions.values() if each.key == key), 0)
                if number:
                    found.append((deployment, deployment.revision(number)))
        return sorted(found, key=lambda each: self._slept.get(each[0].agent, 0))

    async def wake(self, agent: str) -> Deployment:
        """Returns when an agent has a ready worker, which is started if it sleeps; the others that it had follow.

        Goes on if the caller is cancelled. A wake that failed is not tried again faster than a worker that died.

        Raises:
            AgentNotFound, AgentStopped: there is nothing to wake.
            AgentError: why it could not be woken; it sleeps on then.
            AgentNotReady: it is awake, and none of its workers became ready in time.
        """
        deployment = self._pool.startable(agent)
        if not deployment.asleep and deployment.ready():
            return deployment
        waking = self._waking.get(agent)
        if waking is None:
            failure = self._failures.get(agent)
            if deployment.asleep and failure and asyncio.get_running_loop().time() < failure.until_s:
                raise failure.error.with_traceback(None)
            waking = self._pool.spawn(self._wake(agent))
            self._waking[agent] = waking
            waking.add_done_callback(lambda _: self._waking.pop(agent, None))
        await asyncio.wait([waking])
        if waking.cancelled():
            raise errors.Unavailable("the pool is stopping")
        if error := waking.result():
            # The same for all who wait; each raises it from here.
            raise error.with_traceback(None)
        return self._pool.get(agent)

    async def _wake(self, agent: str) -> errors.AgentError | None:
        """What went wrong, if something did: raised in each of those who wait, not here."""
        try:
            deployment = self._pool.startable(agent)
            async with asyncio.timeout(2 * deployment.policies.health.start_timeout_s):
                if deployment.asleep:
                    async with self._pool.lock(agent):
                        deployment = self._pool.startable(agent)
                        if deployment.asleep:
                            await self._start(deployment)
                await self._until_ready(deployment)
        except errors.AgentError as error:
            return error
        except TimeoutError:
            return errors.AgentNotReady(f"agent '{agent}' has no ready worker: {_trouble(deployment)}")
        return None

    async def _start(self, deployment: Deployment) -> None:
        agent = deployment.agent
        began_s = time.monotonic()
        try:
            [first] = await self._enlist(deployment)
            deployment.asleep = False
            await self._crew.start(deployment, [first])
        except BaseException as error:
            deployment.asleep = True
            if isinstance(error, errors.AgentError):
                self._fail(deployment, error)
            self._pool.announce(agent)
            raise
        self.awake(deployment)
        for worker in deployment.new_workers(deployment.replicas - len(deployment.living())):
            # They take their time, and are tried again as the restart policy has it.
            self._keeper.resume(deployment, worker)
        # At once, but nobody waits: were the pool killed before, it would find the agent asleep, and wake it again.
        self._pool.spawn(self._saver.save(agent))
        _log.info("agent woke", agent=agent, seconds=round(time.monotonic() - began_s, 4))

    async def _enlist(self, deployment: Deployment) -> list[Worker]:
        """The first worker; while the old ones are on their way out, the room that they leave is waited for."""
        with self._pool.changes.subscribe() as news:
            while True:
                try:
                    return self._crew.enlist(deployment, 1)
                except errors.InsufficientResources:
                    if not any(worker.state is State.DRAINING for worker in deployment.workers.values()):
                        raise
                await news.take()

    def _fail(self, deployment: Deployment, error: errors.AgentError) -> None:
        agent = deployment.agent
        deployment.status = _COULD_NOT_WAKE + error.message.partition("\n")[0]
        _log.warning("agent could not be woken", agent=agent, reason=error.message)
        if isinstance(error, errors.InsufficientResources):
            return  # nothing was started, and there may be room at the next try
        now_s = asyncio.get_running_loop().time()
        before = self._failures.get(agent)
        in_a_row = before.count if before and now_s < before.until_s + self._backoff.forgive_after_s else 0
        delay_s, count = restart.next_delay(self._backoff, in_a_row, 0.0, chance=1.0)
        self._failures[agent] = _Failure(error, count, now_s + delay_s)

    async def _until_ready(self, deployment: Deployment) -> None:
        agent = deployment.agent
        with self._pool.changes.subscribe() as news:
            while not (deployment.ready() and not deployment.asleep):
                living = deployment.living()
                if deployment.asleep or not living or all(worker.rests for worker in living):
                    raise errors.AgentNotReady(f"agent '{agent}' has no ready worker: {_trouble(deployment)}")
                await news.take()
                deployment = self._pool.startable(agent)


def _trouble(deployment: Deployment) -> str:
    reasons = [worker.reason for worker in deployment.living() if worker.reason]
    command = f"`agent restart {deployment.agent}` starts its workers again"
    return f"{reasons[0]}; {command}" if reasons else f"none is about to start; {command}"
