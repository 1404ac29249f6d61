"""Two drivers as one."""

from collections.abc import Mapping
from typing import Any

import pytest

from agent_pool.drivers.base import Enforcement, Launch, Prepared, Running
from agent_pool.drivers.by_mode import DriversByMode
from tests.agent_pool.drivers.test_docker_request import revision
from tests.agent_pool.test_keeper import RefusingDriver


class Engineless(RefusingDriver):
    """As containers are where no engine answers."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    async def choose(self) -> str:
        return self.mode

    async def recover(
        self,
        revisions: Mapping[str, Prepared],
        launches: Mapping[str, Launch],
        handles: Mapping[str, Mapping[str, Any]],
    ) -> list[Running]:
        return [Running(key, 1, "unix:/s") for key in launches]

    async def enforcement(self, mode: str) -> list[Enforcement]:
        return [Enforcement("engine", False, mode)]


@pytest.mark.parametrize(
    ("preferred", "possible", "chosen"),
    [("", "container", "container"), ("", "native", "native"), ("native", "container", "native"),
     ("container", "native", "container")],
)  # fmt: skip
async def test_the_mode_that_nobody_asked_for(preferred: str, possible: str, chosen: str) -> None:
    assert await DriversByMode(RefusingDriver(), Engineless(possible), preferred).choose() == chosen


async def test_each_worker_is_its_own_driver_s() -> None:
    native, container = RefusingDriver(), Engineless("container")
    drivers = DriversByMode(native, container, "")
    await drivers.start(Launch("a-01", "a-01", revision()))
    await drivers.start(Launch("a-02", "a-02", revision(mode="native")))
    await drivers.destroy("a-02")
    await drivers.destroy("a-02")
    await drivers.check(revision())
    assert (native.calls, container.calls) == (["start", "destroy"], ["start", "check"])
    assert await drivers.enforcement("container") == [Enforcement("engine", False, "container")]
    assert (await drivers.stop("a-02", 1.0)).reason == "it never ran"


async def test_workers_that_are_taken_over_belong_to_their_own_driver() -> None:
    native, container = RefusingDriver(), Engineless("container")
    launches = {"a-01": Launch("a-01", "a-01", revision()), "a-02": Launch("a-02", "a-02", revision(mode="native"))}
    drivers = DriversByMode(native, container, "")
    found = await drivers.recover({}, launches, {})
    assert [each.key for each in found] == ["a-01"]
    await drivers.stop("a-01", 1.0)
    await drivers.stop("a-02", 1.0)
    assert (native.calls, container.calls) == ([], ["stop"])
