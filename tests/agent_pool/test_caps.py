"""Caps that move under workers that run: all of them, or nothing is changed."""

from pathlib import Path

import pytest
from agentruntime import errors

from agent_pool.cgroups.base import Limits
from agent_pool.deployment import RunRequest
from agent_pool.drivers.base import Enforcement
from agent_pool.resources import Requested
from agent_pool.updates import ScaleRequest
from tests.agent_pool.clinic import clinic
from tests.agent_pool.patients import Hospital


class Capping(Hospital):
    """Caps workers; `dead` are gone when their caps are to change."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.dead: set[str] = set()
        self.limits: dict[str, Limits] = {}

    async def enforcement(self, mode: str) -> list[Enforcement]:
        return [Enforcement("memory", True, "here")]

    async def limit(self, key: str, limits: Limits) -> None:
        if key == "echo-02":
            # All of them go at once.
            self.dead = {"echo-01", "echo-02"}
        if key in self.dead:
            raise errors.FailedPrecondition(f"worker '{key}' is gone")
        self.limits[key] = limits


async def test_caps_that_cannot_be_taken_back_leave_nothing_of_the_change(short_directory: Path) -> None:
    driver = Capping(short_directory)
    async with clinic(short_directory, driver) as one:
        deployment = await one.pool.run(RunRequest("echo", replicas=3))
        reserved = one.pool.ledger.reserved()
        with pytest.raises(errors.FailedPrecondition, match="echo-02"):
            await one.pool.updates.scale(ScaleRequest("echo", resources=Requested(memory_bytes=3 * 10**8)))
        assert deployment.current == 1
        assert list(deployment.revisions) == [1]
        assert [worker.revision for worker in deployment.workers.values()] == [1, 1, 1]
        assert one.pool.ledger.reserved() == reserved
        assert driver.limits["echo-03"] == deployment.spec.limits


async def test_what_waits_with_the_old_caps_is_dropped(short_directory: Path) -> None:
    async with clinic(short_directory) as one:
        await one.pool.run(RunRequest("echo"))
        more = Requested(memory_bytes=3 * 10**8)
        await one.pool.updates.scale(ScaleRequest("echo", resources=more, allow_unenforced=True))
        assert one.driver.calls.count("rest") == 1
