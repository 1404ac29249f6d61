"""What a pool that ended in the middle of something leaves to the next one."""

import asyncio
from pathlib import Path

from agent_pool.deployment import RunRequest
from agent_pool.drivers.base import Launch, Running
from agent_pool.updates import UpdateRequest
from tests.agent_pool.clinic import clinic
from tests.agent_pool.patients import Hospital
from tests.waiting import eventually


class Stuck(Hospital):
    """Starts no worker of the second revision."""

    async def start(self, launch: Launch) -> Running:
        if launch.revision.number == 2:
            await asyncio.Event().wait()
        return await super().start(launch)


async def test_a_pool_that_ends_within_a_canarys_roll_leaves_as_many_workers(short_directory: Path) -> None:
    async with clinic(short_directory, Stuck(short_directory)) as one:
        deployment = await one.pool.run(RunRequest("echo", replicas=3))
        trying = asyncio.create_task(one.pool.updates.update(UpdateRequest("echo-01", image="mock-ai")))
        await eventually(lambda: len(deployment.workers) == 4)
    await asyncio.gather(trying, return_exceptions=True)
    async with clinic(short_directory) as other:
        await other.pool.recover()
        deployment = other.pool.get("echo")
        await eventually(lambda: deployment.roll is None)
        await eventually(lambda: len(deployment.ready()) == 3)
        assert sorted(worker.revision for worker in deployment.workers.values()) == [1, 1, 2]
