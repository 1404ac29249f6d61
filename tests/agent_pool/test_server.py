"""The loops beside the calls, when the machine refuses what they do."""

import asyncio
import errno
from typing import cast

from agent_pool import server
from agent_pool.cgroups.base import Group, Hierarchy
from agent_pool.pool import Pool
from tests.waiting import eventually


class Racing:
    """A pool whose worker leaves while it is measured."""

    def __init__(self) -> None:
        self.rounds = 0

    def sample_usage(self) -> None:
        self.rounds += 1
        if self.rounds % 2:
            raise KeyError("tester-01")


async def test_housekeeping_goes_on() -> None:
    racing = Racing()
    task = asyncio.create_task(server._keep_house(cast(Pool, racing), 0.001))
    await eventually(lambda: racing.rounds >= 5)
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


class BusyHierarchy(Hierarchy):
    """One that the kernel does not let us prepare."""

    name = "cgroup v2"
    enforceable = frozenset({"memory"})

    def prepare(self) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    def network_unlimited(self) -> str:
        return "it is busy"

    def group(self, name: str) -> Group:
        raise AssertionError(name)

    def names(self) -> list[str]:
        return []

    def close(self) -> None:
        """Nothing was made."""


def test_groups_that_cannot_be_prepared_are_not_used() -> None:
    assert server._prepared(BusyHierarchy()) is None
    assert server._prepared(None) is None
