"""Falling asleep and waking up, with real workers."""

import asyncio
import os
import time
from collections.abc import Callable
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


async def deployment(pool: RunningPool, agent: str = "echo") -> pb.Deployment:
    return (await pool.pool.GetDeployment(pb.GetDeploymentRequest(agent=agent), timeout=10)).deployment


async def wake(pool: RunningPool, agent: str = "echo") -> pb.Deployment:
    return (await pool.pool.WakeAgent(pb.WakeAgentRequest(agent=agent), timeout=30)).deployment


def ready(of: pb.Deployment) -> list[pb.Worker]:
    return [worker for worker in of.workers if worker.state == pb.WORKER_STATE_READY]


async def until(
    pool: RunningPool, accept: Callable[[pb.Deployment], bool], agent: str = "echo", timeout_s: float = 15
) -> pb.Deployment:
    async def accepted() -> pb.Deployment | None:
        now = await deployment(pool, agent)
        return now if accept(now) else None

    found: pb.Deployment = await eventually(accepted, timeout_s)
    return found


async def asleep_without_processes(pool: RunningPool, agent: str = "echo") -> None:
    """Waits until nothing of the agent is left but its template."""
    await until(pool, lambda now: now.asleep and not now.workers, agent)
    await eventually(lambda: harness.of_agent(pool.home, agent) in ([], [f"template {agent}"]))


async def busy(pool: RunningPool, seconds: str) -> tuple[pb.Worker, asyncio.Task[str]]:
    """A worker of an agent "tester", and a call to it that has begun and takes so long."""
    code = (
        "import asyncio\nfrom agentruntime import Agent\n"
        "class Tester(Agent):\n"
        "    async def generate(self, prompt, *, temperature, max_tokens):\n"
        "        print('begun', flush=True)\n"
        "        await asyncio.sleep(float(prompt))\n"
        "        return 'done'\n"
    )
    await pool.build(harness.project("tester", code=code))
    [worker] = ready(await pool.run("tester:1.0.0"))
    call = asyncio.create_task(harness.generate(worker.address, seconds))
    await eventually(lambda: "begun" in (pool.home.logs / "agents" / "tester" / "tester-01.log").read_text())
    return worker, call


async def test_an_agent_is_registered_asleep_woken_and_put_to_sleep(pool: RunningPool) -> None:
    registered = await pool.run("echo", replicas=0)
    assert registered.asleep
    assert not registered.workers
    assert registered.replicas == 1
    assert registered.services == ["uapi.v1.TextGenerationService"]
    assert registered.descriptors

    woken = await wake(pool)
    assert not woken.asleep
    [worker] = ready(woken)
    assert await harness.generate(worker.address, "awake") == "awake"
    assert [each.pid for each in (await wake(pool)).workers] == [worker.pid]

    await pool.run("echo", replicas=3)
    asleep = await pool.run("echo", replicas=0)
    assert asleep.asleep
    assert asleep.replicas == 3
    await asleep_without_processes(pool)
    assert len(ready(await wake(pool))) >= 1
    await until(pool, lambda now: len(ready(now)) == 3)

    # The last worker that is stopped leaves the agent asleep, not stopped.
    for worker_id in [each.worker_id for each in (await deployment(pool)).workers]:
        await pool.stop(worker_id)
    last = await deployment(pool)
    assert last.asleep
    assert not last.stopped
    await wake(pool)
    await pool.stop("echo")
    with pytest.raises(aio.AioRpcError) as failure:
        await wake(pool)
    assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "agent run" in (failure.value.details() or "")
    with pytest.raises(aio.AioRpcError) as failure:
        await wake(pool, "nobody")
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_thousand_calls_wake_an_agent_once(pool: RunningPool) -> None:
    await pool.run("echo", replicas=0)
    before = (pool.home.root.parent / "pool.log").read_text().count("agent woke")
    woken = await asyncio.gather(*(wake(pool) for _ in range(1000)))
    assert {worker.pid for each in woken for worker in each.workers} == {woken[0].workers[0].pid}
    assert (pool.home.root.parent / "pool.log").read_text().count("agent woke") == before + 1


async def test_a_wake_while_the_workers_drain(pool: RunningPool) -> None:
    old, call = await busy(pool, "1")
    await pool.run("tester:1.0.0", replicas=0)
    woken = await wake(pool, "tester")
    assert not woken.asleep
    [new] = ready(woken)
    assert new.pid != old.pid
    assert await call == "done"
    assert await harness.generate(new.address, "0") == "done"


async def test_a_stop_without_grace_ends_what_an_agent_that_falls_asleep_still_does(pool: RunningPool) -> None:
    _, call = await busy(pool, "60")
    await pool.run("tester:1.0.0", replicas=0)
    await until(pool, lambda now: [each.state for each in now.workers] == [pb.WORKER_STATE_DRAINING], "tester")
    await pool.stop("tester", 0)
    with pytest.raises(aio.AioRpcError) as failure:
        await call
    assert status.decode(failure.value).reason == "WORKER_DRAINED"
    assert not (await deployment(pool, "tester")).workers


async def test_a_wake_that_fails_says_why_to_all_and_is_not_tried_again_at_once(pool: RunningPool) -> None:
    body = "async def start(self):\n        print('starting', flush=True)\n        raise RuntimeError('no database')"
    await pool.build(harness.project("tester", body=body))
    registered = await pool.run("tester:1.0.0", replicas=0)
    assert registered.asleep

    async def fail() -> str:
        with pytest.raises(aio.AioRpcError) as failure:
            await wake(pool, "tester")
        assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        return failure.value.details() or ""

    said = await asyncio.gather(*(fail() for _ in range(20)))
    assert all("RuntimeError: no database" in each and "Traceback" in each for each in said)
    now = await deployment(pool, "tester")
    assert now.asleep
    assert now.status.startswith("could not wake: ")
    assert "no database" in now.status
    # As often as the backoff lets it: 0.1 s, 0.2 s, 0.4 s, …
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        assert "no database" in await fail()
    lines = [line async for line in pool.pool.StreamLogs(pb.StreamLogsRequest(name="tester-01"), timeout=20)]
    assert 2 <= sum(line.line == "starting" for line in lines) <= 6


async def test_a_wake_that_does_not_fit_says_what_is_free(pool: RunningPool) -> None:
    node = await pool.pool.GetNode(pb.GetNodeRequest())
    half = pb.Resources(cpu_millis=int(node.capacity.cpu_millis * 0.6))
    await pool.run("echo", replicas=0, resources=half)
    await pool.run("echo", agent="other", resources=half)
    with pytest.raises(aio.AioRpcError) as failure:
        await wake(pool)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "free" in (failure.value.details() or "")
    assert (await deployment(pool)).asleep
    await pool.stop("other")
    woken = await wake(pool)
    assert ready(woken)
    assert not woken.status


async def test_a_killed_pool_knows_who_sleeps(pool: RunningPool) -> None:
    await pool.run("echo", replicas=2)
    await pool.run("echo", agent="sleeper", replicas=0)
    await pool.run("echo", agent="drowsy", replicas=2)
    await pool.run("echo", agent="drowsy", replicas=0)
    # Killed while one's workers drain, and another wakes.
    waking = asyncio.create_task(wake(pool, "sleeper"))
    await pool.kill()
    waking.cancel()
    await pool.start()
    assert len(ready(await until(pool, lambda now: len(ready(now)) == 2))) == 2
    for agent in ("sleeper", "drowsy"):
        now = await deployment(pool, agent)
        assert now.asleep or agent == "sleeper"  # whose wake may have come first
        assert ready(await wake(pool, agent))


async def test_a_pool_that_is_killed_while_workers_drain_cuts_no_call(pool: RunningPool) -> None:
    _, call = await busy(pool, "4")
    await pool.run("tester:1.0.0", replicas=0)
    await pool.kill()
    await pool.start()
    assert not call.done(), "the call was too short to prove anything"
    [leaving] = (await deployment(pool, "tester")).workers
    assert leaving.state == pb.WORKER_STATE_DRAINING
    assert await call == "done"
    await asleep_without_processes(pool, "tester")


async def test_the_templates_of_those_that_slept_last_stay(
    short_directory: Path,
) -> None:
    running = RunningPool(
        Home(short_directory), {**os.environ, "AGENT_POOL_DRAIN_DELAY_S": "0", "AGENT_POOL_WARM_TEMPLATES": "2"}
    )
    await running.start()
    try:
        names = [f"echo-{letter}" for letter in "abcd"]
        for name in names:
            await running.run("echo", agent=name)
        for name in names:
            await running.run("echo", agent=name, replicas=0)
            await asleep_without_processes(running, name)
        await eventually(lambda: {n for n in names if harness.of_agent(running.home, n)} == {"echo-c", "echo-d"})
        assert ready(await wake(running, "echo-a"))
    finally:
        await running.end()
    assert running.leftovers() == []
