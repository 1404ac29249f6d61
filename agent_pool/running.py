"""RunAgent: an agent that is new, or was stopped, is begun; one that runs is brought to what is asked."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from agentruntime import errors, names
from agentruntime.names import ImageReference

from agent_pool.asked import Asked
from agent_pool.crew import Crew
from agent_pool.deployment import Deployment, RunRequest
from agent_pool.images.catalog import OpenImage
from agent_pool.revision import Spec

if TYPE_CHECKING:
    from agent_pool.pool import Pool


class Runs:
    """Of one pool's agents."""

    def __init__(self, pool: "Pool", crew: Crew) -> None:
        self._pool = pool
        self._crew = crew

    async def run(self, request: RunRequest) -> Deployment:
        """See `Pool.run`."""
        with self._pool.held(self._pool.catalog.find(request.image).digest):
            return await self._run_image(request)

    async def _run_image(self, request: RunRequest) -> Deployment:
        opened = await self._pool.catalog.open(request.image)
        # Not what its agent.yaml says: whoever asks was looked at by the name that stands in the request.
        agent = names.check_agent_name(request.agent or ImageReference.parse(request.image).agent)
        async with self._pool.lock(agent):
            running = self._pool.find(agent)
            if running is None or running.stopped:
                return await self._begin(agent, opened, await self._with_mode(request, running), running)
            _check_same(running, opened, request.asked)
            replicas = running.replicas if request.replicas is None else request.replicas
            async with self._pool.policies(running, request.policies, request.replicas):
                await self._pool.bring(running, replicas)
            return running

    async def _with_mode(self, request: RunRequest, before: Deployment | None) -> RunRequest:
        """The request with the mode that its agent gets, if it says none."""
        if request.asked.mode:
            return request
        mode = before.spec.mode if before else await self._pool.driver.choose()
        return replace(request, asked=replace(request.asked, mode=mode))

    async def _begin(
        self, agent: str, opened: OpenImage, request: RunRequest, before: Deployment | None
    ) -> Deployment:
        """Starts an agent that does not run; if that fails, everything is as it was."""
        deployment = self._new_deployment(agent, opened, request, before)
        if request.narrow:
            (before or deployment).check_narrow(deployment.spec, deployment.asked)
        workers = self._crew.enlist(deployment, deployment.target)
        if deployment.spec.mode == "container":
            deployment.status = "loading its code in a container, whose image is made if there is none"
        self._pool.put(agent, deployment)
        try:
            loaded = await self._pool.loader.load(
                deployment.spec, deployment.asked, starts=bool(workers), allow_unenforced=request.allow_unenforced
            )
            deployment.keep(loaded)
            deployment.status = ""
            self._pool.announce(agent)
            await self._crew.start(deployment, workers)
            deployment.begun = True
            await self._pool.save(agent)
        except BaseException:
            await self._crew.abandon(deployment, workers)
            await self._pool.driver.release(deployment.revision(deployment.current))
            self._pool.put(agent, before)
            raise
        deployment.before = None
        self._pool.sleeping.awake(deployment)
        return deployment

    def _new_deployment(
        self, agent: str, opened: OpenImage, request: RunRequest, before: Deployment | None
    ) -> Deployment:
        index = before.spec.agent_index if before else self._pool.new_index()
        number = before.next_number() if before else 1
        asked, policies = request.asked, request.policies
        if before and _repository(before.spec.image) == _repository(opened.image.reference):
            # One that was stopped goes on as it was asked to run.
            asked, policies = asked.over(before.spec.asked), policies.over(before.asked)
        spec = Spec.of(opened, asked, agent=agent, agent_index=index, number=number, created_at_s=time.time())
        if before is not None and spec.same_as(before.spec):
            spec = before.spec.model_copy(update={"asked": asked})
        deployment = Deployment(
            agent=agent,
            revisions={**(before.revisions if before else {}), spec.number: spec},
            current=spec.number,
            replicas=1,
            asked=policies,
            asleep=request.replicas == 0,
            begun=False,
            before=before,
            # The same: some may still drain, and each is taken out of both when it has ended.
            workers=before.workers if before else {},
        )
        scaling = deployment.policies.scaling
        if request.replicas is not None:
            scaling.check_replicas(request.replicas)
        least = max(1, scaling.min_replicas) if scaling.auto_scale else 1
        deployment.replicas = request.replicas or (before.replicas if before and not scaling.auto_scale else least)
        return deployment


def _repository(reference: str) -> str:
    """An image's name without its tag or digest."""
    return ImageReference.parse(reference).name


def _check_same(running: Deployment, opened: OpenImage, asked: Asked) -> None:
    """Raises OtherRevision unless the request is about what runs already."""
    agent = running.agent
    if opened.image.digest != running.spec.image_digest:
        raise errors.OtherRevision(
            f"agent '{agent}' runs {running.spec.image} ({running.spec.image_digest[:19]}), not "
            f"{opened.image.reference} ({opened.image.digest[:19]}); roll it out with "
            f"`agent update {agent} --image {opened.image.reference}`, or give this one another name"
        )
    if changed := asked.differs_from(running.spec.asked):
        raise errors.OtherRevision(
            f"agent '{agent}' runs with another {', '.join(changed)}; "
            f"`agent update {agent} {changed[0]} …` rolls it out"
        )
