"""A revision is checked against this machine, and its code is loaded, before anything runs from it."""

from agent_pool import enforcement
from agent_pool.asked import AskedPolicies
from agent_pool.drivers.base import Driver
from agent_pool.policies import Policies
from agent_pool.revision import Spec


async def load(driver: Driver, spec: Spec, asked: AskedPolicies, *, allow_unenforced: bool) -> Spec:
    """The revision, with what became known of it.

    Args:
        driver: launches its workers.
        spec: the revision.
        asked: the agent's policies, as far as they were asked for.
        allow_unenforced: whether limits that were asked for may go unenforced.

    Raises:
        AgentError: it cannot be launched here, or its code fails; a template of it may be left.
    """
    notes = enforcement.notes(driver.enforcement(), spec.resources, allow_unenforced=allow_unenforced)
    policies = Policies.of(asked.over(spec.program.policies), spec.serving.concurrency)
    revision = spec.driver_revision(policies.health.start_timeout_s)
    await driver.check(revision)
    prepared = await driver.prepare(revision)
    if prepared.degraded and spec.asked.network == "isolated":
        enforcement.refuse("network isolation", prepared.degraded[0], allow_unenforced=allow_unenforced)
    return spec.model_copy(update={"notes": tuple(notes), "prepared": prepared})
