"""RunAgent and ScaleAgent: what was answered is on disk, and what was refused changed nothing."""

from pathlib import Path

import pytest
from agentruntime import errors

from agent_pool.asked import Asked, AskedPolicies
from agent_pool.deployment import RunRequest
from agent_pool.scaling.policy import AskedScaling
from agent_pool.updates import ScaleRequest, UpdateRequest
from tests.agent_pool.clinic import clinic


async def test_what_was_answered_is_on_disk(short_directory: Path) -> None:
    async with clinic(short_directory) as one:
        await one.pool.run(RunRequest("echo"))
        await one.pool.run(RunRequest("echo", policies=AskedPolicies(restart="no")))
        assert one.on_disk().asked.restart == "no"
        await one.pool.updates.update(UpdateRequest("echo", policies=AskedPolicies(restart="on-failure")))
        assert one.on_disk().asked.restart == "on-failure"
        await one.pool.run(RunRequest("echo", replicas=2))
        saved = one.on_disk()
        assert saved.replicas == 2
        # A pool that takes over keeps a worker only if it knows that it runs.
        assert [bool(worker.handle) for worker in saved.workers] == [True, True]


async def test_what_was_refused_leaves_no_policies(short_directory: Path) -> None:
    async with clinic(short_directory) as one:
        before = (await one.pool.run(RunRequest("echo"))).policies
        up_to_five = AskedPolicies(restart="no", scaling=AskedScaling(auto_scale=True, max_replicas=5))
        with pytest.raises(errors.InvalidArgument, match="99 replicas"):
            await one.pool.run(RunRequest("echo", replicas=99, policies=up_to_five))
        with pytest.raises(errors.InvalidArgument, match="99 replicas"):
            await one.pool.updates.scale(ScaleRequest("echo", 99, scaling=up_to_five.scaling))
        one.driver.refused = {"start"}
        with pytest.raises(OSError, match="no more descriptors"):
            await one.pool.run(RunRequest("echo", replicas=2, policies=up_to_five))
        with pytest.raises(OSError, match="no more descriptors"):
            await one.pool.updates.scale(ScaleRequest("echo", 2, scaling=up_to_five.scaling))
        assert one.pool.get("echo").policies == before
        assert one.pool.get("echo").replicas == 1


async def test_one_that_was_stopped_goes_on_as_it_was_asked_to_run(short_directory: Path) -> None:
    async with clinic(short_directory) as one:
        asked = Asked(log_level="DEBUG", env={"A": "1"})
        await one.pool.run(RunRequest("echo", asked=asked, policies=AskedPolicies(restart="no")))
        await one.pool.stop("echo", 1.0)
        again = await one.pool.run(RunRequest("echo", asked=Asked(env={"B": "2"})))
        assert (again.spec.log_level, again.spec.asked.env) == ("DEBUG", {"A": "1", "B": "2"})
        assert again.policies.restart == "no"
