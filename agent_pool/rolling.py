"""Carries a roll out: starts new workers and drains old ones as the plan says, and goes back if a new one fails."""

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agentruntime import errors, log

from agent_pool import rollout
from agent_pool.deployment import Deployment, Roll
from agent_pool.lifecycle import State
from agent_pool.rollout import Done, Drain, Old, Situation, Start, Step, Stuck
from agent_pool.worker import Worker

if TYPE_CHECKING:
    from agent_pool.crew import Crew
    from agent_pool.keeper import Keeper
    from agent_pool.pool import Pool

_log = log.get("agent_pool.rolling")


class Rolls:
    """Of all deployments. Whoever calls has the agent's lock, and has entered the target among its revisions."""

    def __init__(self, pool: "Pool", crew: "Crew", keeper: "Keeper") -> None:
        self._pool = pool
        self._crew = crew
        self._keeper = keeper

    def situation(self, deployment: Deployment, roll: Roll, new: list[Worker], leaving: set[str]) -> Situation:
        """As it is now, for the plan."""
        workers = deployment.workers
        old = [workers[key] for key in roll.old if key in workers]
        others = [each for each in deployment.ready() if each not in old and each not in new]
        return Situation(
            wanted=roll.wanted,
            old=tuple(
                Old(each.key, each.state is State.READY) for each in old if each.wanted and each.key not in leaving
            ),
            starting=sum(each.state in (State.PENDING, State.STARTING) for each in new),
            ready=sum(each.state is State.READY for each in new),
            draining=sum(not each.wanted or each.key in leaving for each in old),
            others_serve=bool(others),
            room=self._pool.ledger.room(deployment.revisions[roll.target].resources) > 0,
        )

    def first_step(self, deployment: Deployment, roll: Roll) -> Step:
        """What a roll would begin with; Stuck if it cannot begin."""
        return rollout.next_step(self.situation(deployment, roll, [], set()))

    async def run(self, deployment: Deployment, roll: Roll, new: list[Worker] | None = None) -> list[Worker]:
        """Rolls until all is as wanted; the new workers.

        Args:
            deployment: its target revision is among its revisions.
            roll: what is to be done.
            new: workers of the target that there are already.

        Raises:
            AgentError: a new worker failed, or has no room. What was done up to then stands, and is in
                `deployment.roll`; see `give_up`.
        """
        new = list(new or [])
        restarts = {each.key: each.restarts for each in new}
        leaving: dict[str, asyncio.Task[Any]] = {}
        await self._note(deployment, roll)
        with self._pool.changes.subscribe() as changes:
            while True:
                _check(deployment, new, restarts)
                step = rollout.next_step(self.situation(deployment, roll, new, set(leaving)))
                match step:
                    case Start():
                        places = _places(deployment, roll, new)
                        started = self._crew.enlist(
                            deployment, 1, revision=roll.target, places=places, avoid=roll.old
                        )
                        await self._crew.start(deployment, started)
                        new += started
                        await self._note(deployment, roll, sum(each.state is State.READY for each in new))
                    case Drain(key):
                        worker = deployment.workers[key]
                        stop = self._keeper.stop(deployment, worker, roll.grace_s)
                        leaving[key] = self._pool.spawn(stop)
                    case Stuck():
                        self._pool.ledger.check(1, deployment.revisions[roll.target].resources)
                        raise errors.InsufficientResources(
                            f"agent '{deployment.agent}' has one worker that serves, and there is no room for a "
                            "second one beside it; stop an agent or ask for less"
                        )
                    case Done():
                        break
                    case _:
                        await changes.take()
        for stopping in leaving.values():
            await stopping
        deployment.roll, deployment.status = None, ""
        return new

    async def give_up(self, deployment: Deployment, failed: Roll, reason: str) -> None:
        """After a failed roll: goes back to the revision before, if there is one, and to as many workers as before.

        Workers of the old revision that do not start are tried again and again, by the restart policy.
        """
        new = [each for each in deployment.living() if each.revision == failed.target != failed.back_to]
        if failed.back_to and new:
            kept = [each for each in deployment.living() if each.key in failed.old]
            ready = [each for each in kept if each.state is State.READY]
            back = replace(
                failed,
                what=f"rolling back to revision {failed.back_to}",
                target=failed.back_to,
                old=tuple(each.key for each in new),
                wanted=failed.wanted - len(kept) + len(ready),
            )
            try:
                await self.run(deployment, back, ready)
            except Exception as error:
                # Also what the machine refuses: its workers are tried again, below.
                _log.error("the old revision does not start either", agent=deployment.agent, exc_info=error)
                await self._crew.stop(deployment, new, failed.grace_s)
        deployment.roll = None
        self.fill(deployment, failed.back_to or failed.target)
        deployment.status = reason
        self._pool.announce(deployment.agent)

    def fill(self, deployment: Deployment, revision: int) -> None:
        """Has the workers started that are missing; they take their time."""
        missing = deployment.target - len(deployment.living())
        for worker in deployment.new_workers(max(0, missing), revision=revision):
            self._keeper.resume(deployment, worker)

    async def _note(self, deployment: Deployment, roll: Roll, ready: int = 0) -> None:
        """On disk before the first worker starts, so that a pool that takes over knows."""
        deployment.roll = roll
        deployment.status = f"{roll.what} ({ready} of {roll.wanted} workers)"
        self._pool.announce(deployment.agent)
        if not ready:
            await self._pool.save(deployment.agent)


def _places(deployment: Deployment, roll: Roll, new: list[Worker]) -> list[int]:
    """Numbers of the workers that are replaced, in that order, as far as no new worker has them yet."""
    taken = {each.number for each in new}
    old = [deployment.workers[key].number for key in roll.old if key in deployment.workers]
    return [number for number in old if number not in taken]


def _check(deployment: Deployment, new: list[Worker], restarts: dict[str, int]) -> None:
    """Raises AgentFailed if a new worker has failed, also if it runs again: it may have while another one started.

    Args:
        deployment: of the workers.
        new: the workers.
        restarts: of each that was there before the roll, by then.
    """
    for worker in new:
        gone = deployment.workers.get(worker.key) is not worker
        again = worker.restarts > restarts.get(worker.key, 0)
        if gone or again or worker.state in (State.FAILED, State.UNHEALTHY, State.STOPPED):
            why = (worker.last_failure if again else worker.reason) or worker.last_failure or "it ended"
            trace = f"\n{worker.last_traceback}" if worker.last_traceback else ""
            raise errors.AgentFailed(f"worker {worker.worker_id} failed: {why}{trace}")
