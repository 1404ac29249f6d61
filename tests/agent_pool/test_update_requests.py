"""Updates and restarts that wait for something else to be done with the agent go by what there is then."""

import asyncio
from pathlib import Path

import pytest
from agentruntime import errors

from agent_pool.deployment import RunRequest
from agent_pool.drivers.base import Exit, Launch, Running
from agent_pool.lifecycle import State
from agent_pool.updates import ScaleRequest, UpdateRequest
from tests.agent_pool.clinic import clinic
from tests.agent_pool.patients import Hospital
from tests.waiting import eventually


class Slow(Hospital):
    """Starts and ends no worker before `go` is set."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.go = asyncio.Event()
        self.go.set()

    async def start(self, launch: Launch) -> Running:
        await self.go.wait()
        return await super().start(launch)

    async def stop(self, key: str, grace_s: float) -> Exit:
        await self.go.wait()
        return await super().stop(key, grace_s)


async def test_an_agent_that_did_not_come_to_be_is_not_updated(short_directory: Path) -> None:
    driver = Slow(short_directory)
    async with clinic(short_directory, driver) as one:
        driver.refused = {"start"}
        driver.go.clear()
        run = asyncio.create_task(one.pool.run(RunRequest("echo")))
        await eventually(lambda: one.pool.find("echo"))
        update = asyncio.create_task(one.pool.updates.update(UpdateRequest("echo", image="mock-ai")))
        await asyncio.sleep(0)  # it has found the agent, and waits for its lock
        await asyncio.sleep(0)
        driver.go.set()
        with pytest.raises(OSError, match="no more descriptors"):
            await run
        with pytest.raises(errors.AgentNotFound):
            await update
        assert one.pool.deployments() == []


async def test_a_worker_that_drains_is_not_replaced(short_directory: Path) -> None:
    driver = Slow(short_directory)
    async with clinic(short_directory, driver) as one:
        deployment = await one.pool.run(RunRequest("echo", replicas=2))
        driver.go.clear()
        await one.pool.updates.scale(ScaleRequest("echo", 1))
        await eventually(lambda: deployment.workers["echo-02"].state is State.DRAINING)
        try:
            with pytest.raises(errors.FailedPrecondition, match="agent ps"):
                await asyncio.wait_for(one.pool.updates.restart("echo-02", 1.0), 5.0)
            with pytest.raises(errors.FailedPrecondition, match="agent ps"):
                await asyncio.wait_for(one.pool.updates.update(UpdateRequest("echo-02", image="mock-ai")), 5.0)
        finally:
            driver.go.set()
            await eventually(lambda: len(deployment.workers) == 1)
        assert driver.started == 2
