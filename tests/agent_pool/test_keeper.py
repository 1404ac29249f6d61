"""A driver that the machine refuses: the worker fails and is tried again, and nothing stays reserved."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from agent_pool.asked import Asked
from agent_pool.cgroups.base import Limits
from agent_pool.deployment import Deployment
from agent_pool.drivers.base import Driver, Enforcement, Exit, Launch, Prepared, Revision, Running, Stats
from agent_pool.keeper import Keeper
from agent_pool.ledger import Capacity, Ledger
from agent_pool.lifecycle import State
from agent_pool.resources import Requested, resolve
from agent_pool.restart import Backoff
from agent_pool.revision import Program, Spec
from agent_pool.worker import Worker
from tests.waiting import eventually


class RefusingDriver(Driver):
    """Every verb in `refused` raises OSError."""

    name = "refusing"

    def __init__(self, *refused: str) -> None:
        self.refused = set(refused)
        self.calls: list[str] = []

    def _call(self, verb: str) -> None:
        self.calls.append(verb)
        if verb in self.refused:
            raise OSError(24, f"no more descriptors for {verb}")

    async def enforcement(self, mode: str) -> list[Enforcement]:
        return []

    async def check(self, revision: Revision) -> None:
        self._call("check")

    async def prepare(self, revision: Revision) -> Prepared:
        return Prepared()

    def warm(self) -> list[str]:
        return []

    def cpu_s(self, key: str) -> float:
        return 0.0

    async def rest(self, revision: Revision) -> None:
        self._call("rest")

    async def release(self, revision: Revision) -> None:
        self._call("release")

    async def start(self, launch: Launch) -> Running:
        self._call("start")
        return Running(launch.key, 1, "unix:/nonexistent/s")

    async def wait(self, key: str) -> Exit:
        self._call("wait")
        await asyncio.Event().wait()
        return Exit("")

    async def stop(self, key: str, grace_s: float) -> Exit:
        self._call("stop")
        return Exit("ended")

    async def limit(self, key: str, limits: Limits) -> None:
        self._call("limit")

    async def debug(self, key: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        raise NotImplementedError

    async def destroy(self, key: str) -> None:
        self._call("destroy")

    async def recover(
        self,
        revisions: Mapping[str, Prepared],
        launches: Mapping[str, Launch],
        handles: Mapping[str, Mapping[str, Any]],
    ) -> list[Running]:
        return []

    def stats(self, key: str, *, share: bool = False) -> Stats:
        return Stats()

    async def close(self) -> None:
        self._call("close")


def deployment() -> Deployment:
    spec = Spec(
        agent="tester", number=1, agent_index=0, image="tester:1", image_digest="sha256:" + "0" * 64, bundle="/b",
        program=Program(entrypoint="m:C"), asked=Asked(), resources=resolve(Requested()),
    )  # fmt: skip
    return Deployment("tester", {1: spec}, current=1, replicas=1)


async def at_once() -> None:
    """Nobody has to hear of anything."""


def keep(driver: Driver) -> tuple[Keeper, Ledger]:
    ledger = Ledger(Capacity(4000, 2**33, ()))
    backoff = Backoff(first_delay_s=0.001, longest_delay_s=0.002)
    return Keeper(driver, ledger, backoff, changed=lambda _agent: None, heard=at_once), ledger


async def test_a_restart_that_the_machine_refuses_is_tried_again() -> None:
    driver = RefusingDriver("start", "destroy")
    keeper, ledger = keep(driver)
    of = deployment()
    [worker] = of.new_workers(1)
    keeper.resume(of, worker)
    await eventually(lambda: worker.restarts >= 3)
    assert worker.reason.startswith("OSError: ")
    await keeper.stop(of, worker, 1.0)
    assert of.workers == {}
    assert ledger.holding("tester-01") is None


@pytest.mark.parametrize("refused", [["wait"], ["wait", "destroy"]])
async def test_a_worker_that_cannot_be_watched_fails(refused: list[str]) -> None:
    driver = RefusingDriver(*refused)
    keeper, _ = keep(driver)
    of = deployment()
    [worker] = of.new_workers(1)
    keeper.resume(of, worker)
    await eventually(lambda: worker.restarts >= 2)
    assert worker.last_failure.startswith("OSError: ")
    await keeper.stop(of, worker, 1.0)
    assert of.workers == {}


@pytest.mark.parametrize("refused", [["stop"], ["destroy"], ["stop", "destroy"]])
async def test_a_stop_that_the_machine_refuses_frees_what_was_reserved(refused: list[str]) -> None:
    driver = RefusingDriver(*refused)
    keeper, ledger = keep(driver)
    of = deployment()
    [worker] = of.new_workers(1)
    ledger.reserve([worker.worker_id], of.spec.resources)
    worker.state = State.READY
    await keeper.stop(of, worker, 1.0)
    assert driver.calls == ["stop", "destroy"]
    assert worker.state is State.STOPPED
    assert of.workers == {}
    assert ledger.holding("tester-01") is None


async def test_a_start_that_the_machine_refuses_is_told() -> None:
    driver = RefusingDriver("start")
    keeper, ledger = keep(driver)
    of = deployment()
    [worker] = of.new_workers(1)
    with pytest.raises(OSError, match="no more descriptors"):
        await keeper.start(of, worker)
    await keeper.abandon(of, worker)
    assert ledger.holding("tester-01") is None
    assert of.spec.limits != Limits()


class BusyDriver(RefusingDriver):
    """Its workers end when the test says so, or when their grace is none."""

    def __init__(self) -> None:
        super().__init__()
        self.over = asyncio.Event()

    async def stop(self, key: str, grace_s: float) -> Exit:
        self._call(f"stop {grace_s:g}")
        if not grace_s:
            self.over.set()
        await self.over.wait()
        return Exit("ended")


def draining() -> tuple[BusyDriver, Keeper, Deployment, Worker]:
    driver = BusyDriver()
    keeper, _ = keep(driver)
    of = deployment()
    [worker] = of.new_workers(1)
    worker.state = State.READY
    return driver, keeper, of, worker


async def test_whoever_stops_a_worker_that_drains_waits_for_its_end() -> None:
    driver, keeper, of, worker = draining()
    stops = [asyncio.create_task(keeper.stop(of, worker, 30.0)) for _ in range(2)]
    await eventually(lambda: "stop 30" in driver.calls)
    assert not worker.wanted
    assert not any(stop.done() for stop in stops)
    driver.over.set()
    await asyncio.gather(*stops)
    assert driver.calls == ["stop 30", "destroy"]
    assert of.workers == {}


async def test_a_worker_that_drains_gets_no_more_time_than_the_next_who_stops_it_gives() -> None:
    driver, keeper, of, worker = draining()
    first = asyncio.create_task(keeper.stop(of, worker, 30.0))
    await eventually(lambda: "stop 30" in driver.calls)
    await keeper.stop(of, worker, 0.01)
    assert driver.calls == ["stop 30", "stop 0", "destroy"]
    assert of.workers == {}
    await first


async def test_a_drain_goes_on_if_whoever_began_it_is_cancelled() -> None:
    driver, keeper, of, worker = draining()
    first = asyncio.create_task(keeper.stop(of, worker, 30.0))
    await eventually(lambda: "stop 30" in driver.calls)
    first.cancel()
    await asyncio.wait([first])
    second = asyncio.create_task(keeper.stop(of, worker, 30.0))
    driver.over.set()
    await second
    assert driver.calls == ["stop 30", "destroy"]
    assert of.workers == {}
