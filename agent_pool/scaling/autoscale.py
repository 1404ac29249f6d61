"""Looks at all agents every half second: scales those that do so by load, and puts to sleep those that are idle."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentruntime import errors, log

from agent_pool import restart
from agent_pool.deployment import Deployment
from agent_pool.drivers.base import Driver
from agent_pool.restart import Backoff
from agent_pool.scaling.load import STALE_S
from agent_pool.scaling.scaler import History, Sample, Windows, decide

if TYPE_CHECKING:
    from agent_pool.pool import Pool

_COULD_NOT_SCALE = "could not scale "
_MILLIS = 1000
_log = log.get("agent_pool.autoscale")


@dataclass
class _Watched:
    """What is remembered of an agent that is awake."""

    history: History = field(default_factory=History)
    # Of its workers, when and how much they had used, in seconds.
    cpu: dict[str, tuple[float, float]] = field(default_factory=dict)
    failures: int = 0
    # Before then it does not grow again.
    not_before_s: float = 0.0


class Autoscaler:
    """Of one pool.

    Args:
        windows: over which times to look.
        backoff: for how long growth that failed is not tried again.
    """

    def __init__(self, pool: "Pool", windows: Windows, backoff: Backoff) -> None:
        self._pool = pool
        self._windows = windows
        self._backoff = backoff
        self._watched: dict[str, _Watched] = {}

    async def run(self, interval_s: float) -> None:
        """Looks again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.look(time.monotonic())
            except Exception as error:
                # One agent that is looked at while it goes must not leave all others unwatched.
                _log.error("scaling failed", exc_info=error)

    async def look(self, now_s: float) -> None:
        """Looks at every agent once, and has done what follows; does not wait for it."""
        deployments = self._pool.deployments()
        awake = [deployment for deployment in deployments if deployment.target]
        for agent in set(self._watched) - {deployment.agent for deployment in awake}:
            del self._watched[agent]
        scaling = [deployment for deployment in awake if deployment.policies.scaling.auto_scale]
        used = await asyncio.to_thread(_cpu, self._pool.driver, scaling) if scaling else {}
        for deployment in awake:
            watched = self._watched.setdefault(deployment.agent, _Watched())
            if deployment.target and not self._pool.lock(deployment.agent).locked():
                self._tend(deployment, watched, used, now_s)
        for deployment in deployments:
            if deployment.asleep and not deployment.policies.scaling.may_sleep:
                self._pool.spawn(self._rouse(deployment.agent))
        self._pool.spawn(self._pool.sleeping.let_go())

    async def _rouse(self, agent: str) -> None:
        """Wakes an agent whose policy no longer lets it sleep; a failure is in its status, and tried again later."""
        with contextlib.suppress(errors.AgentError):
            await self._pool.wake(agent)

    def _tend(self, deployment: Deployment, watched: _Watched, used: dict[str, float], now_s: float) -> None:
        agent = deployment.agent
        if self._idle(deployment, now_s):
            _log.info("agent is idle", agent=agent, idle_s=round(self._pool.book.idle_s(agent), 1))
            self._pool.spawn(self._pool.sleep_if(agent, lambda: self._idle(deployment, time.monotonic())))
        elif deployment.policies.scaling.auto_scale:
            number = self._wanted(deployment, watched, used, now_s)
            if number < deployment.replicas or (number > deployment.replicas and now_s >= watched.not_before_s):
                self._pool.spawn(self._scale(deployment, watched, number))

    def _idle(self, deployment: Deployment, now_s: float) -> bool:
        """Whether an agent is to be put to sleep. One with a canary is not: that would not be there after it."""
        policy, book = deployment.policies.scaling, self._pool.book
        return (
            policy.may_sleep
            and book.fresh(now_s)
            and book.idle_s(deployment.agent) >= policy.idle_timeout_s
            and all(worker.revision == deployment.current for worker in deployment.living())
        )

    def _wanted(self, deployment: Deployment, watched: _Watched, used: dict[str, float], now_s: float) -> int:
        policy = deployment.policies.scaling
        if not self._pool.book.fresh(now_s):
            watched.history = History()
            return min(max(deployment.replicas, policy.min_replicas), policy.max_replicas)
        samples = watched.history.samples
        if samples and now_s - samples[-1].at_s > STALE_S:
            watched.history = History()
        agent = deployment.agent
        sample = Sample(now_s, self._pool.book.calls(agent, now_s), _share(deployment, watched, used, now_s))
        number, watched.history = decide(
            watched.history,
            sample,
            policy,
            self._windows,
            workers=deployment.replicas,
            called=self._pool.book.idle_s(agent) < self._windows.mean_s,
        )
        return number

    async def _scale(self, deployment: Deployment, watched: _Watched, number: int) -> None:
        agent, before = deployment.agent, deployment.replicas
        try:
            done = await self._pool.adjust(agent, number)
        except errors.AgentError as error:
            delay_s, watched.failures = restart.next_delay(self._backoff, watched.failures, 0.0, chance=1.0)
            watched.not_before_s = time.monotonic() + delay_s
            deployment.status = f"{_COULD_NOT_SCALE}to {number} workers: {error.message.partition(chr(10))[0]}"
            self._pool.announce(agent)
            return
        watched.failures = 0
        if deployment.status.startswith(_COULD_NOT_SCALE):
            deployment.status = ""
            self._pool.announce(agent)
        _log.info("agent scaled", agent=agent, before=before, now=done)


def _cpu(driver: Driver, deployments: list[Deployment]) -> dict[str, float]:
    """CPU seconds that workers have used so far, by worker id. Blocks for some microseconds each."""
    return {
        worker.worker_id: driver.cpu_s(worker.worker_id)
        for deployment in deployments
        for worker in list(deployment.workers.values())
        if worker.pid
    }


def _share(deployment: Deployment, watched: _Watched, used: dict[str, float], now_s: float) -> float:
    """What all workers together used since the last time, in multiples of what one of them may use."""
    cpu: dict[str, tuple[float, float]] = {}
    total = 0.0
    for worker in deployment.living():
        if worker.worker_id not in used:
            continue
        cpu[worker.worker_id] = (now_s, used[worker.worker_id])
        then_s, before_s = watched.cpu.get(worker.worker_id, cpu[worker.worker_id])
        limit = (deployment.spec_of(worker).resources.cpu_limit_millis or _MILLIS) / _MILLIS
        # Less than before is another process under the same name.
        if now_s > then_s and used[worker.worker_id] > before_s:
            total += (used[worker.worker_id] - before_s) / (now_s - then_s) / limit
    watched.cpu = cpu
    return total
