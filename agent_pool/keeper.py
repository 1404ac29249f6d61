"""Keeps one deployment's workers: starts them, watches over them, starts them again, ends them.

A worker that serves has one task here, which ends only when the worker is stopped.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any

from agentruntime import errors, log

from agent_pool import health, restart
from agent_pool.asked import FailureAction
from agent_pool.deployment import DEFAULT_GRACE_S, Deployment
from agent_pool.drivers.base import Driver, Exit, Running
from agent_pool.health import HealthProbe, Verdict
from agent_pool.ledger import Ledger
from agent_pool.lifecycle import Event, State
from agent_pool.restart import Backoff
from agent_pool.revision import Spec
from agent_pool.turns import Turns
from agent_pool.worker import Worker

# A change of a worker's weight that is worth telling.
_WEIGHT_NEWS = 5
# How many workers start at a time, and for how long one that starts keeps others from starting.
_STARTS = 8
_LONGEST_START_S = 2.0
_log = log.get("agent_pool.keeper")
Placed = Callable[[], Coroutine[Any, Any, None]]


class Keeper:
    """Of the workers of all deployments.

    Args:
        changed: is called with the agent's name after each change of a worker.
        heard: comes back once whoever routes to workers can have heard of the changes until now.
        admit: raises for a revision that may not run here.
        random: of the jitter.
    """

    def __init__(
        self,
        driver: Driver,
        ledger: Ledger,
        backoff: Backoff,
        *,
        changed: Callable[[str], None],
        heard: Callable[[], Awaitable[None]],
        admit: Callable[[Spec], None] = lambda _spec: None,
        random: Random | None = None,
    ) -> None:
        self._driver = driver
        self._ledger = ledger
        self._backoff = backoff
        self._changed = changed
        self._heard = heard
        self._admit = admit
        self._random = random or Random()  # noqa: S311 — spreads restarts, guards nothing
        self._tasks: dict[str, asyncio.Task[None]] = {}
        # Of workers that drain; nobody's hanging up ends them.
        self._endings: dict[Worker, asyncio.Task[None]] = {}
        # Of workers that start: those beside others of their agent, and those that have none beside them.
        self._crowds = Turns(_STARTS, _LONGEST_START_S)
        self._firsts = Turns(_STARTS, _LONGEST_START_S)

    async def start(self, deployment: Deployment, worker: Worker, placed: Placed | None = None) -> None:
        """Starts a pending worker, and returns when it is ready; it is kept from then on.

        Args:
            deployment: of the worker.
            worker: it.
            placed: is called once it is known where the worker runs, and awaited before it counts as started.

        Raises:
            AgentError: it failed to start. Nothing of its process is left; `remove` the rest of it.
        """
        try:
            await self._launch(deployment, worker, placed)
        except BaseException:
            await self._wipe(worker)
            raise
        self._keep(deployment, worker)

    def resume(self, deployment: Deployment, worker: Worker) -> None:
        """Keeps a worker that was taken over (it has an address), or that is pending and may take its time."""
        self._keep(deployment, worker)

    async def stop(self, deployment: Deployment, worker: Worker, grace_s: float) -> None:
        """Drains a worker and removes it; one that drains already gets no more time than this.

        Returns when nothing of it is left. Goes on if the caller is cancelled.
        """
        ending = self._endings.get(worker)
        if ending is not None:
            await asyncio.wait([ending], timeout=grace_s)
            if not ending.done():
                await self._end_process(worker, 0.0)
        elif worker.wanted:
            ending = self._ends(worker, self._retire(deployment, worker, grace_s))
        else:
            return
        await asyncio.shield(ending)

    def see_off(self, deployment: Deployment, worker: Worker) -> None:
        """Lets a worker finish that was taken over while it drained."""
        self._ends(worker, self._end(deployment, worker, DEFAULT_GRACE_S))

    def _ends(self, worker: Worker, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        ending = self._endings[worker] = asyncio.create_task(work)
        ending.add_done_callback(lambda _: self._endings.pop(worker))
        return ending

    async def _retire(self, deployment: Deployment, worker: Worker, grace_s: float) -> None:
        served = worker.state in (State.READY, State.UNHEALTHY)
        if not worker.rests:
            # First of all: whoever counts the workers must not count on it.
            worker.apply(Event.DRAIN)
            self._changed(worker.agent)
        task = self._tasks.pop(worker.key, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        if worker.rests:
            if worker.state is State.DRAINING:
                await self._end_process(worker, grace_s)
            await self.remove(deployment, worker)
            return
        if served:
            await self._heard()
        await self._end(deployment, worker, grace_s)

    async def _end(self, deployment: Deployment, worker: Worker, grace_s: float) -> None:
        """Waits for the end of a worker that drains, and removes what is left of it."""
        worker.apply(Event.END, await self._end_process(worker, grace_s))
        await self.remove(deployment, worker)

    async def _end_process(self, worker: Worker, grace_s: float) -> str:
        """Has a worker's process end; says how it did."""
        try:
            return (await self._driver.stop(worker.key, grace_s)).reason
        except OSError as error:
            # `remove` kills whatever is left.
            _log.error("worker could not be drained", worker_id=worker.worker_id, exc_info=error)
            return f"killed, because it could not be drained: {error}"

    async def abandon(self, deployment: Deployment, worker: Worker) -> None:
        """Ends a worker at once, whatever it does, and removes it."""
        task = self._tasks.pop(worker.key, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await self.remove(deployment, worker)

    async def remove(self, deployment: Deployment, worker: Worker) -> None:
        """Takes a worker whose process is gone out of the deployment and the ledger."""
        try:
            await self._wipe(worker)
        except OSError as error:
            # What the kernel will not let go of is swept up by the next pool; nobody waits for it here.
            _log.error("something of a worker is left", worker_id=worker.worker_id, exc_info=error)
        finally:
            self._ledger.release(worker.key)
            deployment.workers.pop(worker.key, None)
            self._changed(worker.agent)

    def _keep(self, deployment: Deployment, worker: Worker) -> None:
        self._tasks[worker.key] = asyncio.create_task(self._live(deployment, worker))

    async def _wipe(self, worker: Worker) -> None:
        try:
            await self._driver.destroy(worker.key)
        finally:
            if worker.probe is not None:
                await worker.probe.close()
                worker.probe = None

    async def _launch(self, deployment: Deployment, worker: Worker, placed: Placed | None = None) -> None:
        # Whoever has no other worker has somebody waiting: no crowd of another agent's comes before it.
        turns = self._crowds if deployment.ready() else self._firsts
        async with turns.turn():
            await self._launch_now(deployment, worker, placed)

    async def _launch_now(self, deployment: Deployment, worker: Worker, placed: Placed | None) -> None:
        # Also of those that are started again: keys come and go.
        self._admit(deployment.spec_of(worker))
        worker.gpus = self._reserved(deployment, worker)
        worker.apply(Event.LAUNCH)
        worker.started_at_s = time.time()
        # The import has a limit of its own, and must not use up the worker's.
        with contextlib.suppress(errors.Unavailable):  # it is made anew, below
            await self._driver.prepare(deployment.revision(worker.revision))
        policy = deployment.policies.health
        loop = asyncio.get_running_loop()
        end_s = loop.time() + policy.start_timeout_s
        try:
            async with asyncio.timeout_at(end_s):
                running = await self._begin(deployment, worker)
        except TimeoutError:
            raise errors.AgentFailed(
                f"worker {worker.worker_id} did not start to serve within {policy.start_timeout_s:g}s"
            ) from None
        worker.runs(running)
        placing = asyncio.ensure_future(placed()) if placed else None
        try:
            # Not told: nobody routes to it before it is ready, and its first moments are spent better than on news.
            await self._become_ready(deployment, worker, end_s - loop.time())
        finally:
            if placing is not None:
                await placing

    async def _begin(self, deployment: Deployment, worker: Worker) -> Running:
        launch = deployment.launch(worker)
        try:
            return await self._driver.start(launch)
        except errors.Unavailable as error:
            # What it was made from died under it, and is made anew.
            _log.warning("worker is started once more", worker_id=worker.worker_id, reason=error.message)
            await self._driver.destroy(worker.key)
            return await self._driver.start(launch)

    def _reserved(self, deployment: Deployment, worker: Worker) -> tuple[int, ...]:
        self._ledger.reserve([worker.key], deployment.spec_of(worker).resources)
        held = self._ledger.holding(worker.key)
        return held.gpus if held else ()

    async def _become_ready(self, deployment: Deployment, worker: Worker, timeout_s: float) -> None:
        worker.probe = HealthProbe(worker.address)
        asking = asyncio.create_task(worker.probe.until_well(timeout_s))
        ending = asyncio.create_task(self._driver.wait(worker.key))
        try:
            await asyncio.wait([asking, ending], return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                raise errors.AgentFailed(_failure(worker, ending.result()))
            if problem := asking.result():
                raise errors.AgentFailed(
                    f"worker {worker.worker_id} did not become healthy within "
                    f"{deployment.policies.health.start_timeout_s:g}s: {problem}"
                )
        finally:
            asking.cancel()
            ending.cancel()
        worker.apply(Event.ANSWER)
        self._changed(worker.agent)

    async def _live(self, deployment: Deployment, worker: Worker) -> None:
        """A worker's whole life, over all its restarts."""
        while True:
            end, ready_for_s = Exit(""), 0.0
            try:
                if worker.state is State.PENDING and worker.address:
                    worker.apply(Event.LAUNCH)
                    await self._become_ready(deployment, worker, deployment.policies.health.start_timeout_s)
                elif worker.state is State.PENDING:
                    await self._launch(deployment, worker)
                end = await self._serve(deployment, worker)
                reason = _failure(worker, end)
                ready_for_s = time.time() - worker.ready_at_s
            except errors.AgentError as error:
                reason = error.message
            except Exception as error:
                # A full disk, no more descriptors, or a mistake of ours: the worker fails, and is tried again.
                _log.error("worker could not be kept", worker_id=worker.worker_id, exc_info=error)
                reason = f"{type(error).__name__}: {error}"
            served = worker.state in (State.READY, State.UNHEALTHY)
            again = not worker.rests and restart.wanted_again(deployment.policies.restart, end.status, served=served)
            if again:
                delay_s, worker.failures = restart.next_delay(
                    self._backoff, worker.failures, ready_for_s, self._random.random()
                )
                worker.retry_at_s = time.time() + delay_s
            # Before its state tells: one that ended for good stays listed, and counts, until an operator restarts or
            # removes it.
            worker.rests = not again
            await self._note_end(worker, reason, as_it_may=not again and served and end.status == 0)
            if not again:
                self._tasks.pop(worker.key, None)
                self._ledger.release(worker.key)
                self._changed(worker.agent)
                return
            if not await self._pause(deployment, worker, end, served=served):
                return
            last = worker.reason
            worker.apply(Event.RETRY, last)
            worker.retry_at_s = 0.0
            worker.restarts += 1
            self._changed(worker.agent)

    async def _pause(self, deployment: Deployment, worker: Worker, end: Exit, *, served: bool) -> bool:
        """Waits until a worker that failed is due again; False if the policy, which may change, wants it no more."""
        due = False
        while not due:
            try:
                async with asyncio.timeout(worker.retry_at_s - time.time()):
                    await worker.ask_now.wait()
                worker.ask_now.clear()
            except TimeoutError:
                due = True
            if not restart.wanted_again(deployment.policies.restart, end.status, served=served):
                worker.rests, worker.retry_at_s = True, 0.0
                self._tasks.pop(worker.key, None)
                self._ledger.release(worker.key)
                self._changed(worker.agent)
                return False
        return True

    async def _note_end(self, worker: Worker, reason: str, *, as_it_may: bool) -> None:
        """Its process is gone, or has to be: takes in why, tells it, and removes what is left."""
        # One line for `agent ps`; the log has all of it.
        line, _, rest = reason.partition("\n")
        if worker.state is State.DRAINING or as_it_may:
            worker.apply(Event.END, line)
            _log.info("worker ended", worker_id=worker.worker_id, reason=line)
        else:
            worker.apply(Event.FAIL, line)
            worker.last_traceback = rest
            _log.warning("worker failed", worker_id=worker.worker_id, reason=reason)
        self._changed(worker.agent)
        try:
            await self._wipe(worker)
        except Exception as error:
            _log.error("something of a worker is left", worker_id=worker.worker_id, exc_info=error)

    async def _serve(self, deployment: Deployment, worker: Worker) -> Exit:
        """Returns when a worker has ended, by itself or because its health is what the policy ends it for."""
        checking = asyncio.create_task(self._check(deployment, worker))
        ending = asyncio.create_task(self._driver.wait(worker.key))
        try:
            await asyncio.wait([checking, ending], return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                return ending.result()
            problem = checking.result()
        finally:
            checking.cancel()
            ending.cancel()
            await asyncio.wait([checking, ending])
        policy = deployment.policies.health
        if _failure_action(deployment, worker) == "stop":
            worker.rests = True
            worker.apply(Event.DRAIN, problem)
            self._changed(worker.agent)
        await self._heard()
        # One that is replaced has little time: whatever it does, it takes too long.
        grace_s = DEFAULT_GRACE_S if worker.rests else policy.timeout_s
        await self._driver.stop(worker.key, grace_s)
        return Exit(f"unhealthy: {problem}")

    async def _check(self, deployment: Deployment, worker: Worker) -> str:
        """Asks a worker's health, until the policy ends it for that; says why."""
        results: list[bool] = []
        assert worker.probe is not None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deployment.policies.health.interval_s):
                    await worker.ask_now.wait()
            worker.ask_now.clear()
            policy = deployment.policies.health
            answer = await worker.probe.ask(policy.timeout_s)
            problem = health.problem(policy, answer)
            self._note_lag(worker, answer.lag_s)
            results = [*results, not problem][-policy.retries :]
            verdict = health.judge(policy, results)
            if verdict is Verdict.SICK and worker.state is State.READY:
                self._note_health(worker, Event.SICKEN, problem)
            elif verdict is Verdict.WELL and worker.state is State.UNHEALTHY:
                self._note_health(worker, Event.RECOVER, "")
            if verdict is Verdict.SICK and _failure_action(deployment, worker) != "ignore":
                return problem

    def _note_health(self, worker: Worker, event: Event, reason: str) -> None:
        worker.apply(event, reason)
        _log.warning("worker's health changed", worker_id=worker.worker_id, state=worker.state, reason=reason)
        self._changed(worker.agent)

    def _note_lag(self, worker: Worker, lag_s: float) -> None:
        before, worker.lag_s = worker.lag_s, lag_s
        if abs(health.weight(before) - health.weight(lag_s)) >= _WEIGHT_NEWS:
            self._changed(worker.agent)


def _failure_action(deployment: Deployment, worker: Worker) -> FailureAction:
    # One that is debugged may stand at a breakpoint for as long as it likes.
    debugged = deployment.spec_of(worker).serving.debug
    return "ignore" if debugged else deployment.policies.health.failure_action


def _failure(worker: Worker, end: Exit) -> str:
    reason = f"worker {worker.worker_id} failed: {end.error} ({end.reason})" if end.error else end.reason
    return f"{reason}\n{end.traceback}" if end.traceback else reason
