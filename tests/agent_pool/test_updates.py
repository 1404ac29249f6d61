"""Updates, canaries, rollbacks and restarts of real workers, and a pool that is killed within one."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from agentruntime import status
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime.home import Home
from grpc import aio

from tests.agent_pool import harness
from tests.agent_pool.harness import RunningPool
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.root]

CODE = """\
import asyncio
from agentruntime import Agent

class Tester(Agent):
    {start}

    async def generate(self, prompt, *, temperature, max_tokens):
        if prompt.startswith("wait"):
            await asyncio.sleep(float(prompt.split()[1]))
        return "{version} " + prompt
"""
FAILS = "async def start(self):\n        raise RuntimeError('no model here')"


async def build(pool: RunningPool, version: str, start: str = "pass") -> None:
    await pool.build(harness.project("tester", code=CODE.format(version=version, start=start)), f"tester:{version}")


async def deployment(pool: RunningPool) -> pb.Deployment:
    return (await pool.pool.GetDeployment(pb.GetDeploymentRequest(agent="tester"), timeout=10)).deployment


async def revisions(pool: RunningPool) -> list[pb.Revision]:
    return list((await pool.pool.ListRevisions(pb.ListRevisionsRequest(agent="tester"), timeout=10)).revisions)


async def update(pool: RunningPool, name: str = "tester", **fields: object) -> pb.Deployment:
    request = pb.UpdateAgentRequest(name=name, **fields)  # type: ignore[arg-type]  # fields of the message
    request.grace_period.FromSeconds(10)
    return (await pool.pool.UpdateAgent(request, timeout=60)).deployment


def states(of: pb.Deployment) -> list[tuple[int, int]]:
    return [(worker.revision, worker.state) for worker in of.workers]


class Caller:
    """Calls ready workers, as a gateway does: by what the pool tells its watchers. Counts what comes back."""

    def __init__(self, pool: RunningPool) -> None:
        self._pool = pool
        self.answers: dict[str, int] = {}
        self.failed: list[str] = []
        self._ready: list[str] = []
        self.least_ready = 10**6

    async def watch(self) -> None:
        async for event in self._pool.pool.WatchDeployments(pb.WatchDeploymentsRequest()):
            if event.changed.agent == "tester":
                ready = [each for each in event.changed.workers if each.state == pb.WORKER_STATE_READY]
                self._ready = [each.address for each in ready]
                self.least_ready = min(self.least_ready, len(ready))

    async def call(self, turn: int) -> None:
        while True:
            turn += 1
            if not self._ready:
                await asyncio.sleep(0.001)
                continue
            try:
                answer = await harness.generate(self._ready[turn % len(self._ready)], "wait 0.02")
                version = answer.split()[0]
                self.answers[version] = self.answers.get(version, 0) + 1
            except aio.AioRpcError as error:
                self.failed.append(f"{error.code()}: {error.details()}")


@contextlib.asynccontextmanager
async def calling(pool: RunningPool) -> AsyncIterator[Caller]:
    caller = Caller(pool)
    tasks = [asyncio.create_task(caller.watch()), *(asyncio.create_task(caller.call(turn)) for turn in range(4))]
    try:
        await eventually(lambda: sum(caller.answers.values()) > 5)
        yield caller
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.fixture
async def patient_pool(short_directory: Path) -> AsyncIterator[RunningPool]:
    """One that waits for the news of a draining worker to arrive."""
    running = await RunningPool(Home(short_directory), dict(os.environ)).start()
    try:
        yield running
    finally:
        await running.end()
    assert running.leftovers() == []


async def test_an_update_under_load_fails_no_call_and_can_be_taken_back(patient_pool: RunningPool) -> None:
    pool = patient_pool
    await build(pool, "one")
    await build(pool, "two")
    await pool.run("tester:one", replicas=2)
    async with calling(pool) as caller:
        updated = await update(pool, image="tester:two", settings=pb.AgentSettings(env={"A": "B"}))
        await eventually(lambda: caller.answers.get("two", 0) > 20)
        assert caller.failed == []
        assert caller.least_ready == 2
        assert states(updated) == [(2, pb.WORKER_STATE_READY)] * 2
        assert (updated.image, updated.status, updated.settings.env["A"]) == ("tester:two", "", "B")

        request = pb.RollbackAgentRequest(agent="tester")
        back = (await pool.pool.RollbackAgent(request, timeout=60)).deployment
        ones = caller.answers["one"]
        await eventually(lambda: caller.answers["one"] > ones + 10)
        assert caller.failed == []
        assert caller.least_ready == 2
        assert states(back) == [(3, pb.WORKER_STATE_READY)] * 2
        assert "A" not in back.settings.env

        restarted = await pool.pool.RestartAgent(pb.RestartAgentRequest(name="tester"), timeout=60)
        now = await deployment(pool)
        assert [each.worker_id for each in now.workers] == list(restarted.worker_ids)
        assert states(now) == states(back)
        assert {each.pid for each in now.workers}.isdisjoint(each.pid for each in back.workers)
        assert caller.failed == []
        assert caller.least_ready == 2
    kept = await revisions(pool)
    assert [(each.number, each.cause, each.current, each.image) for each in kept] == [
        (3, "rollback to 1", True, "tester:one"), (2, "update", False, "tester:two"), (1, "run", False, "tester:one"),
    ]  # fmt: skip
    # Nothing changes: no revision, no new worker.
    assert states(await update(pool, image="tester:one")) == states(back)
    # Templates of revisions that nothing runs from are let go.
    assert len(list((pool.home.run / "t").glob("i-*"))) == 1


async def test_a_revision_that_fails_is_rolled_back_and_says_why(pool: RunningPool) -> None:
    await build(pool, "one")
    await build(pool, "bad", FAILS)
    before = await pool.run("tester:one", replicas=2)
    with pytest.raises(aio.AioRpcError) as failure:
        await update(pool, image="tester:bad", settings=pb.AgentSettings(restart_policy=pb.RESTART_POLICY_NO))
    assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    error = status.decode(failure.value)
    assert error.reason == "ROLLED_BACK"
    for part in (
        "revision 2 of agent 'tester' failed, and revision 1 runs again",
        "RuntimeError: no model here",
        "Tr",
    ):
        assert part in error.message
    now = await deployment(pool)
    assert [each.pid for each in now.workers] == [each.pid for each in before.workers]
    assert now.status.startswith("rolled back to revision 1: worker tester-01 failed: RuntimeError: no model here")
    assert (now.revision, now.settings.restart_policy) == (1, pb.RESTART_POLICY_ALWAYS)
    kept = await revisions(pool)
    assert [(each.number, each.current, bool(each.failure), each.ready_workers) for each in kept] == [
        (2, False, True, 0), (1, True, False, 2),
    ]  # fmt: skip
    # The one before the current that did not fail: there is none.
    with pytest.raises(aio.AioRpcError) as failure:
        await pool.pool.RollbackAgent(pb.RollbackAgentRequest(agent="tester"), timeout=20)
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND

    # What does not even import starts nothing, and is no revision.
    await pool.build(harness.project("tester", before="raise ValueError('at import')"), "tester:worse")
    with pytest.raises(aio.AioRpcError) as failure:
        await update(pool, image="tester:worse")
    assert status.decode(failure.value).reason == "AGENT_FAILED"
    assert len(await revisions(pool)) == 2


async def test_a_canary_on_one_worker(pool: RunningPool) -> None:
    await build(pool, "one")
    await build(pool, "two")
    await pool.run("tester:one", replicas=2)
    tried = await update(pool, "tester-01", image="tester:two")
    assert sorted(states(tried)) == [(1, pb.WORKER_STATE_READY), (2, pb.WORKER_STATE_READY)]
    assert (tried.revision, tried.replicas, tried.image) == (1, 2, "tester:one")
    canary = next(each for each in tried.workers if each.revision == 2)
    assert canary.image == "tester:two"
    assert await harness.generate(canary.address, "x") == "two x"
    # It is restarted as what it is.
    harness.kill(canary.pid)
    again = await pool.until(canary.worker_id, lambda now: now.restarts == 1 and now.state == pb.WORKER_STATE_READY)
    assert again.revision == 2
    more = await pool.run("tester:one", replicas=3)
    assert sorted(each.revision for each in more.workers) == [1, 1, 2]
    # Rolled back by default, rolled out by an update to the same.
    back = (await pool.pool.RollbackAgent(pb.RollbackAgentRequest(agent="tester"), timeout=60)).deployment
    assert states(back) == [(1, pb.WORKER_STATE_READY)] * 3
    await update(pool, back.workers[0].worker_id, image="tester:two")
    out = await update(pool, image="tester:two")
    assert len({each.revision for each in out.workers}) == 1
    assert (out.image, len(out.workers)) == ("tester:two", 3)


async def test_restarting_one_worker_and_two_updates_at_once(pool: RunningPool) -> None:
    await build(pool, "one")
    await build(pool, "slow", "async def start(self):\n        await asyncio.sleep(1)")
    before = await pool.run("tester:one", replicas=2)
    kept = before.workers[1]
    restarted = await pool.pool.RestartAgent(pb.RestartAgentRequest(name="tester-01"), timeout=30)
    now = await deployment(pool)
    assert list(restarted.worker_ids) == ["tester-01"]
    pids = {each.worker_id: each.pid for each in now.workers}
    assert pids["tester-01"] != before.workers[0].pid
    assert pids["tester-02"] == kept.pid
    assert now.replicas == len(now.workers) == 2

    updating = asyncio.create_task(update(pool, image="tester:slow"))
    await eventually(lambda: rolling(pool))
    for attempt in (update(pool, image="tester:one"), pool.pool.RestartAgent(pb.RestartAgentRequest(name="tester"))):
        with pytest.raises(aio.AioRpcError) as failure:
            await attempt
        assert failure.value.code() is grpc.StatusCode.ABORTED
    # A stop waits for it.
    stopping = asyncio.create_task(pool.stop("tester", 20))
    assert states(await updating)
    await stopping
    assert (await deployment(pool)).stopped
    with pytest.raises(aio.AioRpcError) as failure:
        await pool.pool.RestartAgent(pb.RestartAgentRequest(name="tester"), timeout=10)
    assert "agent run tester" in (failure.value.details() or "")


async def test_an_agent_without_workers_takes_a_revision_up_and_starts_nothing(pool: RunningPool) -> None:
    await build(pool, "one")
    await build(pool, "two")
    await pool.build(harness.project("tester", before="raise ValueError('at import')"), "tester:bad")
    await pool.run("tester:one", replicas=0)
    with pytest.raises(aio.AioRpcError) as failure:
        await update(pool, image="tester:bad")
    assert "ValueError: at import" in (failure.value.details() or "")
    updated = await update(pool, image="tester:two")
    assert (updated.revision, updated.asleep, states(updated)) == (2, True, [])
    woken = (await pool.pool.WakeAgent(pb.WakeAgentRequest(agent="tester"), timeout=30)).deployment
    assert await harness.generate(woken.workers[0].address, "x") == "two x"
    # Stopped, it is rolled back as quietly, and runs so when it is started.
    await pool.stop("tester")
    back = (await pool.pool.RollbackAgent(pb.RollbackAgentRequest(agent="tester"), timeout=30)).deployment
    assert (back.revision, back.stopped, states(back)) == (3, True, [])
    assert not list((pool.home.run / "t").glob("i-*"))
    started = await pool.run("tester:one")
    assert states(started) == [(3, pb.WORKER_STATE_READY)]


async def test_policies_are_taken_up_at_once(pool: RunningPool) -> None:
    before = await pool.run("echo")
    traffic = pb.Traffic(load_balancer=pb.LOAD_BALANCER_STICKY, failure_threshold=5)
    after = await pool.run("echo", traffic=traffic, cache=pb.Cache(max_bytes=10**6))
    assert (after.revision, after.workers[0].pid) == (before.revision, before.workers[0].pid)
    assert (after.settings.traffic, after.settings.cache.max_bytes) == (traffic, 10**6)
    assert after.settings.cache.ttl.seconds == 300
    serving = pb.Serving(queue=7)
    updated = await update(pool, "echo", settings=pb.AgentSettings(serving=serving, cache=pb.Cache(max_bytes=0)))
    assert (updated.settings.serving.queue, updated.settings.serving.concurrency) == (7, 64)
    assert (updated.settings.traffic, updated.settings.cache.max_bytes) == (traffic, 0)
    # All of it is there after the pool was killed.
    await pool.kill()
    await pool.start()
    again = (await pool.pool.GetDeployment(pb.GetDeploymentRequest(agent="echo"), timeout=10)).deployment
    assert again.settings == updated.settings


async def test_a_network_limit_without_a_network_is_no_new_revision_and_counts_once_there_is_one(
    pool: RunningPool,
) -> None:
    before = await pool.run("echo")
    limit = pb.AgentSettings(isolation=pb.Isolation(network_limit_bps=10**9))
    updated = await update(pool, "echo", settings=limit)
    assert (updated.revision, updated.workers[0].pid) == (before.revision, before.workers[0].pid)
    assert any("the network limit has no effect" in note for note in updated.notes)
    assert updated.settings.isolation.network_limit_bps == 10**9
    # All of it is there after the pool was killed.
    await pool.kill()
    await pool.start()
    host = pb.AgentSettings(network=pb.NETWORK_MODE_HOST)
    updated = await update(pool, "echo", settings=host, allow_unenforced=True)
    assert (updated.revision, updated.settings.isolation.network_limit_bps) == (before.revision + 1, 10**9)
    assert not any("has no effect" in note for note in updated.notes)


async def rolling(pool: RunningPool) -> bool:
    return (await deployment(pool)).status.startswith("updating to revision 2 (")


async def test_no_room_for_a_second_one(pool: RunningPool) -> None:
    capacity = (await pool.pool.GetNode(pb.GetNodeRequest())).capacity
    await build(pool, "one")
    await build(pool, "two")
    # More than half of the machine: no two of them fit.
    most = pb.Resources(cpu_millis=capacity.cpu_millis * 6 // 10)
    before = await pool.run("tester:one", resources=most)
    with pytest.raises(aio.AioRpcError) as failure:
        await update(pool, image="tester:two")
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "free" in (failure.value.details() or "")
    now = await deployment(pool)
    assert (now.revision, now.workers[0].pid) == (1, before.workers[0].pid)
    assert len(await revisions(pool)) == 1
    # Two that fill the machine: one makes room.
    await pool.stop("tester")
    half = pb.Resources(cpu_millis=capacity.cpu_millis * 4 // 10)
    await pool.run("tester:one", replicas=2, resources=half)
    updated = await update(pool, image="tester:two")
    assert [each.image for each in updated.workers] == ["tester:two"] * 2


@pytest.mark.parametrize(("version", "start"), [("two", "pass"), ("bad", FAILS)])
async def test_a_pool_that_is_killed_within_a_roll_takes_it_up_again(
    pool: RunningPool, version: str, start: str
) -> None:
    slow = start.replace("raise", "await asyncio.sleep(1); raise") if start != "pass" else (
        "async def start(self):\n        await asyncio.sleep(0.3)"
    )  # fmt: skip
    await build(pool, "one")
    await build(pool, version, slow)
    before = await pool.run("tester:one", replicas=3)
    updating = asyncio.create_task(update(pool, image=f"tester:{version}"))
    await eventually(lambda: rolling(pool))
    await pool.kill()
    with pytest.raises((aio.AioRpcError, asyncio.CancelledError)):
        await updating
    for each in before.workers[1:]:
        assert await harness.generate(each.address, "still here") == "one still here"
    await pool.start()

    def over(now: pb.Deployment) -> bool:
        return len(now.workers) == 3 and not now.status.startswith("updating") and "rolling" not in now.status

    if version == "two":
        # The client asks again, and is answered when what it asked for first is over.
        assert (await update(pool, image="tester:two")).revision == 2
        assert len(await revisions(pool)) == 2
    now = await until(pool, over)
    if version == "two":
        assert states(now) == [(2, pb.WORKER_STATE_READY)] * 3
        assert now.status == ""
    else:
        assert states(now) == [(1, pb.WORKER_STATE_READY)] * 3
        assert "no model here" in now.status
        assert [each.pid for each in now.workers] == [each.pid for each in before.workers]


async def test_a_restart_that_a_pool_dies_in_leaves_as_many_workers_as_before(pool: RunningPool) -> None:
    await build(pool, "slow", "async def start(self):\n        await asyncio.sleep(0.3)")
    await pool.run("tester:slow", replicas=2)
    restarting = pool.pool.RestartAgent(pb.RestartAgentRequest(name="tester"), timeout=30)

    async def one_is_new() -> bool:
        return len((await deployment(pool)).workers) > 2

    await eventually(one_is_new)
    await pool.kill()
    with pytest.raises((aio.AioRpcError, asyncio.CancelledError)):
        await restarting
    await pool.start()
    now = await until(pool, lambda now: states(now) == [(1, pb.WORKER_STATE_READY)] * 2)
    assert (now.replicas, now.status) == (2, "")


async def until(pool: RunningPool, accept: Callable[[pb.Deployment], bool]) -> pb.Deployment:
    async def accepted() -> pb.Deployment | None:
        now = await deployment(pool)
        return now if accept(now) else None

    found: pb.Deployment = await eventually(accepted, 20)
    return found
