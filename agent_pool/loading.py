"""A revision is checked against this machine, and its code is loaded, before anything runs from it."""

from collections.abc import Callable

from agentruntime import errors

from agent_pool import enforcement
from agent_pool.asked import AskedPolicies
from agent_pool.deployment import Deployment
from agent_pool.drivers.base import Driver, Prepared, Revision
from agent_pool.images.catalog import Catalog
from agent_pool.known import Known
from agent_pool.policies import Policies
from agent_pool.revision import Spec
from agent_pool.secrets.vault import Vault

Admit = Callable[[Spec], None]


def admission(catalog: Catalog, vault: Vault) -> Admit:
    """Raises for a revision that may not run here, before any of its code does: ImageNotTrusted or SecretNotSet."""

    def admit(spec: Spec) -> None:
        catalog.check_trust(spec.image, spec.image_digest)
        vault.granted(spec.agent, spec.permissions.secrets)

    return admit


class Loader:
    """Of one pool.

    Args:
        driver: loads the code.
        admit: raises for a revision that may not run here.
    """

    def __init__(self, driver: Driver, admit: Admit) -> None:
        self._driver = driver
        self._admit = admit
        self._known = Known()

    async def load(self, spec: Spec, asked: AskedPolicies, *, starts: bool, allow_unenforced: bool) -> Spec:
        """The revision, with what became known of it.

        Args:
            spec: the revision.
            asked: the agent's policies, as far as they were asked for.
            starts: whether workers of it are to start now. Otherwise it is not loaded, if its like was before.
            allow_unenforced: whether limits that were asked for may go unenforced.

        Raises:
            AgentError: it cannot be launched here, or its code fails; a template of it may be left.
        """
        self._admit(spec)
        spec = spec.model_copy(update={"allow_unenforced": allow_unenforced})
        policies = Policies.of(asked.over(spec.program.policies), spec.serving.concurrency)
        revision = spec.driver_revision(policies.health.start_timeout_s)
        await self._driver.check(revision)
        enforced = await self._driver.enforcement(spec.mode)
        notes = enforcement.notes(enforced, spec)
        prepared = None if starts else self._known.find(revision)
        if prepared is None:
            prepared = self._known.learn(revision, await self._prepare(revision))
        enforcement.check_sandbox(spec, prepared.degraded)
        return spec.model_copy(update={"notes": tuple(notes), "prepared": prepared})

    async def _prepare(self, revision: Revision) -> Prepared:
        try:
            return await self._driver.prepare(revision)
        except errors.Unavailable:
            # What loads it died under it, and is made anew.
            return await self._driver.prepare(revision)

    def recall(self, deployment: Deployment) -> None:
        """Takes in what is known of an agent that comes from disk; the same content is then kept once."""
        for number, spec in deployment.revisions.items():
            if spec.prepared.services:  # it was loaded
                prepared = self._known.learn(deployment.revision(number), spec.prepared)
                deployment.revisions[number] = spec.model_copy(update={"prepared": prepared})
