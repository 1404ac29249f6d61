"""Rolls that fail, on workers that are health servers in this process: what is left runs, and as many as before."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
from agentruntime import errors

from agent_pool.changes import Changes
from agent_pool.crew import Crew
from agent_pool.deployment import Deployment, Roll
from agent_pool.drivers.base import Exit, Launch, Running
from agent_pool.keeper import Keeper
from agent_pool.ledger import Capacity, Ledger
from agent_pool.lifecycle import State
from agent_pool.pool import Pool
from agent_pool.resources import Requested, resolve
from agent_pool.restart import Backoff
from agent_pool.rolling import Rolls
from tests.agent_pool.patients import Hospital
from tests.agent_pool.test_keeper import at_once
from tests.agent_pool.test_state import spec
from tests.waiting import eventually


class Choosy(Hospital):
    """Starts no worker of the revisions in `bad`; the one called `slow` takes its time to end."""

    bad: frozenset[int] = frozenset()
    slow = ""

    async def stop(self, key: str, grace_s: float) -> Exit:
        while key == self.slow:
            await asyncio.sleep(0.001)
        return await super().stop(key, grace_s)

    async def start(self, launch: Launch) -> Running:
        self._call("start")
        if launch.revision.number in self.bad:
            raise errors.AgentFailed(f"worker {launch.worker_id} failed: no model here\nTraceback …")
        return await super().start(launch)


class Bench:
    """What rolls need of a pool, around one agent with two ready workers of revision 1; 2 is to be rolled out."""

    def __init__(self, directory: Path, cpu_millis: int) -> None:
        self.driver = Choosy(directory)
        self.ledger = Ledger(Capacity(cpu_millis, 10**10))
        self.changes = Changes()
        self.saved: list[Roll | None] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.keeper = Keeper(
            self.driver, self.ledger, Backoff(0.01, longest_delay_s=0.02), changed=self.announce, heard=at_once
        )
        self.crew = Crew(self.ledger, self.keeper)
        self.rolls = Rolls(cast(Pool, self), self.crew, self.keeper)
        resources = resolve(Requested(cpu_millis=100))
        revisions = {number: spec(number, resources=resources) for number in (1, 2)}
        self.deployment = Deployment("a", revisions, current=1, replicas=2)

    def announce(self, agent: str) -> None:
        self.changes.publish(agent)

    async def save(self, agent: str) -> None:
        self.saved.append(self.deployment.roll)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]

    def roll(self, target: int, back_to: int) -> Roll:
        return Roll("updating to revision 2", target, back_to, ("a-01", "a-02"), wanted=2, grace_s=1.0)

    def serving(self) -> list[tuple[str, int]]:
        return sorted((each.worker_id, each.revision) for each in self.deployment.ready())


@pytest.fixture(params=[1000, 200], ids=["room", "no room"])
async def bench(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    made = Bench(tmp_path, request.param)
    await made.crew.start(made.deployment, made.crew.enlist(made.deployment, 2))
    yield made
    made.driver.slow = ""
    await made.crew.stop(made.deployment, list(made.deployment.workers.values()), 0.0)
    await asyncio.gather(*made.tasks)
    assert made.ledger.reserved().cpu_millis == 0


async def test_all_become_new(bench: Bench) -> None:
    roll = bench.roll(2, 1)
    new = await bench.rolls.run(bench.deployment, roll)
    assert sorted(each.worker_id for each in new) == ["a-01", "a-02"]
    assert bench.serving() == [("a-01", 2), ("a-02", 2)]
    # On disk before anything was started.
    assert bench.saved[0] == roll
    assert (bench.deployment.roll, bench.deployment.status) == (None, "")


async def test_a_revision_that_does_not_start_is_given_up(bench: Bench) -> None:
    bench.driver.bad = frozenset({2})
    with pytest.raises(errors.AgentFailed, match="no model here"):
        await bench.rolls.run(bench.deployment, bench.roll(2, 1))
    await bench.rolls.give_up(bench.deployment, bench.roll(2, 1), "rolled back")
    await eventually(lambda: [revision for _, revision in bench.serving()] == [1, 1])
    assert (bench.deployment.roll, bench.deployment.status) == (None, "rolled back")


async def test_one_that_dies_before_the_roll_is_over_is_given_up(bench: Bench) -> None:
    bench.driver.slow = "a-02"
    rolling = asyncio.create_task(bench.rolls.run(bench.deployment, bench.roll(2, 1)))

    def first() -> Any:
        return next((each for each in bench.deployment.ready() if each.revision == 2), None)

    worker = await eventually(first)
    bench.driver.patients[worker.key].ended.set_result(Exit("exit status 1", "ValueError: no", "Traceback …", 1))
    with pytest.raises(errors.AgentFailed, match="ValueError: no"):
        await rolling
    bench.driver.slow = ""
    await bench.rolls.give_up(bench.deployment, bench.roll(2, 1), "rolled back")
    await eventually(lambda: [revision for _, revision in bench.serving()] == [1, 1])


@pytest.mark.parametrize("bench", [1000], indirect=True, ids=["room"])
async def test_one_that_died_while_the_next_one_started_is_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.driver.slow = "a-02"
    died = asyncio.Event()
    begin = bench.driver.start

    async def start(launch: Launch) -> Running:
        if launch.revision.number == 2 and bench.driver.started > 2 and not died.is_set():
            worker = next(each for each in bench.deployment.ready() if each.revision == 2)
            bench.driver.patients[worker.key].ended.set_result(
                Exit("exit status 1", "ValueError: no", "Traceback …", 1)
            )
            died.set()
            # It runs again before whoever rolls can look.
            await eventually(lambda: worker.restarts == 1 and worker.state is State.READY)
        return await begin(launch)

    monkeypatch.setattr(bench.driver, "start", start)
    with pytest.raises(errors.AgentFailed, match="ValueError: no"):
        await bench.rolls.run(bench.deployment, bench.roll(2, 1))
    bench.driver.slow = ""
    await bench.rolls.give_up(bench.deployment, bench.roll(2, 1), "rolled back")
    await eventually(lambda: [revision for _, revision in bench.serving()] == [1, 1])


async def test_a_restart_that_fails_leaves_what_is_left_and_goes_on_trying(bench: Bench) -> None:
    bench.driver.bad = frozenset({1})
    with pytest.raises(errors.AgentFailed, match="no model here"):
        await bench.rolls.run(bench.deployment, bench.roll(1, 0))
    await bench.rolls.give_up(bench.deployment, bench.roll(1, 0), "restarting failed")
    assert bench.serving()
    assert len(bench.deployment.living()) == 2
    bench.driver.bad = frozenset()
    await eventually(lambda: len(bench.serving()) == 2)


async def test_an_old_revision_that_does_not_start_either_is_tried_again(bench: Bench) -> None:
    await bench.rolls.run(bench.deployment, bench.roll(2, 1))
    bench.driver.bad = frozenset({1})
    await bench.rolls.give_up(bench.deployment, bench.roll(2, 1), "rolled back")
    assert [each.revision for each in bench.deployment.living()] == [1, 1]
    assert all(each.state is not State.READY for each in bench.deployment.living())
    bench.driver.bad = frozenset()
    await eventually(lambda: [revision for _, revision in bench.serving()] == [1, 1])


async def test_a_way_back_that_the_machine_refuses_is_tried_again(bench: Bench) -> None:
    await bench.rolls.run(bench.deployment, bench.roll(2, 1))
    bench.driver.refused = {"start"}
    await bench.rolls.give_up(bench.deployment, bench.roll(2, 1), "rolled back")
    assert (bench.deployment.roll, bench.deployment.status) == (None, "rolled back")
    assert [each.revision for each in bench.deployment.living()] == [1, 1]
    bench.driver.refused = set()
    await eventually(lambda: [revision for _, revision in bench.serving()] == [1, 1])
