"""What makes an agent another: updates, canaries, rollbacks, restarts, and other resources for what runs."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from agentruntime import errors, log, names

from agent_pool import enforcement
from agent_pool.asked import Asked, AskedPolicies
from agent_pool.deployment import DEFAULT_GRACE_S, Deployment, Roll
from agent_pool.resources import Requested, resolve
from agent_pool.revision import Spec
from agent_pool.rolling import Rolls
from agent_pool.rollout import Stuck
from agent_pool.scaling.policy import AskedScaling
from agent_pool.worker import Worker

if TYPE_CHECKING:
    from agent_pool.pool import Pool

_log = log.get("agent_pool.updates")


@dataclass(frozen=True)
class UpdateRequest:
    """What UpdateAgent is called with."""

    name: str
    image: str = ""
    asked: Asked = field(default_factory=Asked)
    policies: AskedPolicies = field(default_factory=AskedPolicies)
    grace_s: float = DEFAULT_GRACE_S
    allow_unenforced: bool = False
    # By an operator of some agents alone.
    narrow: bool = False


@dataclass(frozen=True)
class ScaleRequest:
    """What ScaleAgent is called with."""

    agent: str
    replicas: int | None = None
    # None to leave them as they are.
    resources: Requested | None = None
    scaling: AskedScaling = field(default_factory=AskedScaling)
    allow_unenforced: bool = False


class Updates:
    """Of all deployments; one at a time of each. What is asked for goes on if the caller hangs up."""

    def __init__(self, pool: "Pool", rolls: Rolls) -> None:
        self._pool = pool
        self._rolls = rolls
        self._busy: set[str] = set()
        # Rolls that a pool before this one began, by agent; set when they are over.
        self._resumed: dict[str, asyncio.Event] = {}

    async def restart(self, name: str, grace_s: float) -> list[str]:
        """Replaces the workers of an agent, or one of them; the ids of the new ones. See the proto's RestartAgent."""
        return await self._pool.finish(self._restart(name, grace_s))

    async def update(self, request: UpdateRequest) -> Deployment:
        """Makes a new revision and rolls it out. See the proto's UpdateAgent."""
        # Who asked the pool that died asks again: what it began is over first, and may be all that was wanted.
        if over := self._resumed.get(request.name):
            await over.wait()
        return await self._pool.finish(self._update(request))

    async def roll_back(self, agent: str, number: int | None, grace_s: float, *, narrow: bool = False) -> Deployment:
        """Rolls out what an earlier revision was. See the proto's RollbackAgent.

        Args:
            agent: its name.
            number: of the revision; None for the one before.
            grace_s: for calls in flight.
            narrow: nothing comes back that only an operator of all agents may ask for.
        """
        return await self._pool.finish(self._roll_back(agent, number, grace_s, narrow=narrow))

    async def scale(self, request: ScaleRequest) -> Deployment:
        """Gives an agent another scaling policy, other resources, or more or fewer workers. See ScaleAgent."""
        return await self._pool.finish(self._scale(request))

    async def resume(self, deployment: Deployment) -> None:
        """Takes up the roll of a pool that died."""
        roll = deployment.roll
        if roll is None:
            return
        over = self._resumed[deployment.agent] = asyncio.Event()
        try:
            with self._alone(deployment.agent):
                async with self._pool.lock(deployment.agent):
                    of_target = [worker for worker in deployment.living() if worker.revision == roll.target]
                    new = [worker for worker in of_target if worker.key not in roll.old]
                    _log.info("takes up a roll", agent=deployment.agent, what=roll.what)
                    await self._roll(deployment, roll, new)
                    # A canary's roll is about that one worker, and the pool may have ended with all of them.
                    self._rolls.fill(deployment, deployment.current)
        finally:
            del self._resumed[deployment.agent]
            over.set()

    async def _restart(self, name: str, grace_s: float) -> list[str]:
        agent = self._pool.named(name)[0].agent
        with self._alone(agent):
            async with self._pool.lock(agent):
                deployment = self._pool.startable(agent)
                one = _worker(deployment, name)
                old = [one] if one else deployment.living()
                started: list[Worker] = []
                # Those of each revision for themselves: beside the current one, there may be a canary.
                for number in sorted({worker.revision for worker in old}):
                    ids = tuple(worker.key for worker in old if worker.revision == number)
                    started += await self._roll(deployment, Roll("restarting", number, 0, ids, len(ids), grace_s))
                await self._pool.save(agent)
                return sorted(worker.worker_id for worker in started)

    async def _update(self, request: UpdateRequest) -> Deployment:
        agent = self._pool.named(request.name)[0].agent
        image = self._pool.catalog.find(request.image) if request.image else None
        with self._alone(agent), self._pool.held(image.digest if image else ""):
            async with self._pool.lock(agent):
                deployment = self._pool.get(agent)
                one = _worker(deployment, request.name)
                spec = await self._next(deployment, request, "canary" if one else "update")
                if request.narrow:
                    deployment.check_narrow(spec, request.policies.over(deployment.asked))
                async with self._pool.policies(deployment, request.policies):
                    await self._turn_to(deployment, spec, one, request.grace_s, request.allow_unenforced)
                return deployment

    async def _next(self, deployment: Deployment, request: UpdateRequest, cause: str) -> Spec:
        """The revision that a request asks for; one that there is, if it is the same."""
        current = deployment.spec
        asked = request.asked.over(current.asked)
        number, now_s = deployment.next_number(), time.time()
        if request.image:
            opened = await self._pool.catalog.open(request.image)
            spec = Spec.of(
                opened, asked, agent=current.agent, agent_index=current.agent_index,
                number=number, created_at_s=now_s, cause=cause,
            )  # fmt: skip
        else:
            resources = resolve(asked.resources, current.program.resources)
            spec = _copy(current, number, cause, asked=asked, resources=resources)
        in_use = [current, *(deployment.spec_of(worker) for worker in deployment.living())]
        same = next((each for each in in_use if each.same_as(spec)), None)
        # What makes no difference now may make one to the revision after it.
        return same.model_copy(update={"asked": asked}) if same else spec

    async def _roll_back(self, agent: str, number: int | None, grace_s: float, *, narrow: bool) -> Deployment:
        with self._alone(agent):
            async with self._pool.lock(agent):
                deployment = self._pool.get(agent)
                spec = await self._earlier(deployment, number)
                if narrow:
                    deployment.check_narrow(spec, deployment.asked)
                if narrow and (wider := spec.wider_than(deployment.spec)):
                    raise errors.PermissionDenied(
                        f"that revision of agent '{agent}' has other {', '.join(wider)} than the current one; "
                        "to bring them back takes the role operate for all agents",
                        reason="NOT_PERMITTED",
                    )
                allowed = spec.allow_unenforced or not narrow
                await self._turn_to(deployment, spec, None, grace_s, allow_unenforced=allowed)
                return deployment

    async def _earlier(self, deployment: Deployment, number: int | None) -> Spec:
        """The revision to roll back to, as a new one unless it is the current one."""
        canary = any(worker.revision != deployment.current for worker in deployment.living())
        if number is None and canary:
            number = deployment.current
        if number is None:
            earlier = [each for each in deployment.revisions.values() if not each.failure]
            number = max((each.number for each in earlier if each.number < deployment.current), default=0)
            if not number:
                raise errors.NotFound(f"agent '{deployment.agent}' has no revision before the current one")
        if number not in deployment.revisions:
            kept = ", ".join(str(each) for each in sorted(deployment.revisions))
            raise errors.NotFound(f"agent '{deployment.agent}' has no revision {number}; it has {kept}")
        spec = deployment.revisions[number]
        if not await asyncio.to_thread(Path(spec.bundle).is_dir):
            name = names.ImageReference.parse(spec.image).name
            await self._pool.catalog.open(f"{name}@{spec.image_digest}")
        if spec.same_as(deployment.spec):
            return deployment.spec
        return _copy(spec, deployment.next_number(), f"rollback to {number}", loaded_as=0)

    async def _scale(self, request: ScaleRequest) -> Deployment:
        agent, replicas, resources = request.agent, request.replicas, request.resources
        with self._alone(agent) if resources is not None else contextlib.nullcontext():
            async with self._pool.lock(agent):
                only_policies = resources is None and replicas is None
                deployment = self._pool.get(agent) if only_policies else self._pool.startable(agent)
                async with self._pool.policies(deployment, AskedPolicies(scaling=request.scaling), replicas):
                    if resources is not None:
                        await self._resize(deployment, resources, allow_unenforced=request.allow_unenforced)
                    if replicas is not None:
                        await self._pool.bring(deployment, replicas)
                return deployment

    async def _resize(self, deployment: Deployment, wanted: Requested, *, allow_unenforced: bool) -> None:
        """Gives an agent's workers other resources: in place, or by a roll."""
        current = deployment.spec
        asked = Asked(resources=wanted).over(current.asked)
        resources = resolve(asked.resources, current.program.resources)
        spec = _copy(current, deployment.next_number(), "scale", asked=asked, resources=resources)
        if spec.same_as(current):
            return
        if spec.same_but_for_caps(current) and not deployment.asleep:
            await self._move_caps(deployment, spec, allow_unenforced=allow_unenforced)
        else:
            await self._turn_to(deployment, spec, None, DEFAULT_GRACE_S, allow_unenforced)

    async def _move_caps(self, deployment: Deployment, spec: Spec, *, allow_unenforced: bool) -> None:
        """Gives the current revision's workers other caps; they are of the new revision then. All, or nothing."""
        pool, current = self._pool, deployment.spec
        spec = spec.model_copy(update={"allow_unenforced": allow_unenforced})
        enforced = await pool.driver.enforcement(spec.mode)
        notes = enforcement.notes(enforced, spec)
        spec = spec.model_copy(update={"loaded_as": current.loaded_as or current.number, "notes": tuple(notes)})
        workers = [worker for worker in deployment.living() if worker.revision == current.number]
        ids = [worker.key for worker in workers]
        pool.ledger.change(ids, spec.resources)
        # Before the caps: what is started meanwhile begins with the new ones.
        deployment.turn_to(spec)
        for worker in workers:
            worker.revision = spec.number
        capped = any(entry.enforced for entry in enforced if entry.what in ("memory", "cpu", "pids"))
        try:
            for worker in workers:
                if capped and worker.pid:
                    await pool.driver.limit(worker.key, spec.limits)
            # What waits to become a worker has the caps of before.
            await pool.driver.rest(deployment.revision(spec.number))
        except BaseException:
            for worker in workers:
                worker.revision = current.number
            deployment.turn_to(current)
            del deployment.revisions[spec.number]
            pool.ledger.change(ids, current.resources)
            for worker in workers:
                if worker.pid:
                    await self._cap_again(worker, current)
            raise
        pool.announce(deployment.agent)
        await pool.save(deployment.agent)

    async def _cap_again(self, worker: Worker, spec: Spec) -> None:
        try:
            await self._pool.driver.limit(worker.key, spec.limits)
        except Exception as error:
            # It has died meanwhile; its successor begins with these caps.
            _log.warning("a worker did not get its caps back", worker_id=worker.worker_id, exc_info=error)

    async def _turn_to(
        self, deployment: Deployment, spec: Spec, canary: Worker | None, grace_s: float, allow_unenforced: bool
    ) -> None:
        """Makes workers be of a revision, which may be new: all of them, or the one that is a canary.

        Raises:
            AgentError: everything is as it was then.
        """
        old = [canary] if canary else deployment.living()
        old = [worker for worker in old if worker.revision != spec.number]
        if not old and spec.number == deployment.current:
            if spec != deployment.spec:
                deployment.keep(spec)
                self._pool.announce(deployment.agent)
                await self._pool.save(deployment.agent)
            return
        before = deployment.current
        roll = Roll(
            what=("trying" if canary else "updating to") + f" revision {spec.number}",
            target=spec.number,
            back_to=canary.revision if canary else before,
            old=tuple(worker.key for worker in old),
            wanted=1 if canary else deployment.target,
            grace_s=grace_s,
        )
        known = spec.number in deployment.revisions
        try:
            if not known:
                self._check_room(deployment, spec, roll)
                spec = await self._pool.loader.load(
                    spec, deployment.asked, starts=roll.wanted > 0, allow_unenforced=allow_unenforced
                )
            deployment.keep(spec)
            if isinstance(self._rolls.first_step(deployment, roll), Stuck):
                # No new worker fits, and no old one can make room: says what is free.
                self._pool.ledger.check(1, spec.resources)
            if not canary:
                deployment.turn_to(spec)
        except BaseException:
            if not known:
                deployment.revisions.pop(spec.number, None)
                await self._pool.driver.release(spec.driver_revision(0.0))
            raise
        new = [] if canary else [worker for worker in deployment.living() if worker.revision == spec.number]
        await self._roll(deployment, roll, new)
        if deployment.stopped:
            await self._pool.driver.release(spec.driver_revision(0.0))

    def _check_room(self, deployment: Deployment, spec: Spec, roll: Roll) -> None:
        """Raises InsufficientResources if the new workers would not fit even without the old ones."""
        if roll.wanted:
            self._pool.ledger.check(roll.wanted, spec.resources, besides=roll.old)

    async def _roll(self, deployment: Deployment, roll: Roll, new: list[Worker] | None = None) -> list[Worker]:
        """Rolls; a roll that fails is undone, and the error says so.

        Raises:
            FailedPrecondition: a worker failed; reason ROLLED_BACK, where there is a revision to go back to.
        """
        agent = deployment.agent
        try:
            started = await self._rolls.run(deployment, roll, new)
        except Exception as error:
            # Also what the machine refuses: a full disk, no more descriptors.
            message = error.message if isinstance(error, errors.AgentError) else f"{type(error).__name__}: {error}"
            reason = message.partition("\n")[0]
            _log.warning("a roll failed", agent=agent, what=roll.what, reason=message)
            if not roll.back_to or roll.back_to == roll.target:
                await self._rolls.give_up(deployment, roll, f"{roll.what} failed: {reason}")
                await self._pool.save(agent)
                raise
            failed = deployment.revisions[roll.target].model_copy(update={"failure": reason})
            if deployment.current == roll.target:
                deployment.turn_to(deployment.revisions[roll.back_to])
            deployment.keep(failed)
            await self._rolls.give_up(deployment, roll, f"rolled back to revision {roll.back_to}: {reason}")
            await self._release_unused(deployment)
            await self._pool.save(agent)
            raise errors.FailedPrecondition(
                f"revision {roll.target} of agent '{agent}' failed, and revision {roll.back_to} runs again: "
                f"{message}",
                reason="ROLLED_BACK",
            ) from None
        await self._release_unused(deployment)
        self._pool.announce(agent)
        await self._pool.save(agent)
        return started

    async def _release_unused(self, deployment: Deployment) -> None:
        """Lets go of the templates of revisions that nothing runs from."""
        used = {deployment.spec.key, *(deployment.spec_of(worker).key for worker in deployment.workers.values())}
        for spec in list(deployment.revisions.values()):
            if spec.key not in used:
                await self._pool.driver.release(spec.driver_revision(0.0))

    @contextlib.contextmanager
    def _alone(self, agent: str) -> Iterator[None]:
        """Raises Aborted if something else of this kind goes on with the agent."""
        if agent in self._busy:
            raise errors.Aborted(f"another update or restart of agent '{agent}' goes on; try again when it is over")
        self._busy.add(agent)
        try:
            yield
        finally:
            self._busy.discard(agent)


def _worker(deployment: Deployment, name: str) -> Worker | None:
    """The worker that a name means, as it is now; None if it means the agent itself.

    Raises:
        FailedPrecondition: the worker has ended, or is about to.
    """
    if name == deployment.agent:
        return None
    worker = deployment.named(name)
    if worker is None or not worker.wanted:
        raise errors.FailedPrecondition(
            f"worker '{name}' has ended, or is about to; `agent ps` lists those that stay"
        )
    return worker


def _copy(spec: Spec, number: int, cause: str, **changes: object) -> Spec:
    """A new revision out of another one."""
    fresh = {"number": number, "cause": cause, "created_at_s": time.time(), "failure": "", "loaded_as": 0}
    return spec.model_copy(update={**fresh, **changes})
