"""Real workers that end, crash again and again, or block: what their policies make of them."""

import pytest
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from grpc import aio

from tests.agent_pool import harness
from tests.agent_pool.harness import RunningPool

pytestmark = [pytest.mark.integration, pytest.mark.root]

ENDS = """\
import asyncio, os, sys, time
from agentruntime import Agent

class Tester(Agent):
    async def generate(self, prompt, *, temperature, max_tokens):
        if prompt.startswith("exit"):
            os._exit(int(prompt.split()[1]))
        if prompt.startswith("block"):
            time.sleep(float(prompt.split()[1]))
        if prompt == "crash":
            os.kill(os.getpid(), 11)
        if prompt == "leave":
            await asyncio.create_task(self.leave())
        return prompt

    async def leave(self):
        sys.exit(4)
"""


async def build(pool: RunningPool) -> None:
    await pool.build(harness.project("tester", code=ENDS))


async def ask(worker: pb.Worker, prompt: str) -> None:
    with pytest.raises(aio.AioRpcError):
        await harness.generate(worker.address, prompt)


async def restarted(pool: RunningPool, times: int) -> pb.Worker:
    return await pool.until("tester-01", lambda now: now.restarts == times and now.state == pb.WORKER_STATE_READY)


async def test_a_crash_loop_is_named(pool: RunningPool) -> None:
    await build(pool)
    [worker] = (await pool.run("tester:1.0.0")).workers
    for restarts in range(1, 5):
        harness.kill(worker.pid)
        worker = await restarted(pool, restarts)
        assert not worker.crash_loop
    harness.kill(worker.pid)
    looping = await pool.until("tester-01", lambda now: now.crash_loop)
    assert looping.reason == "killed by signal 9"
    assert looping.HasField("retry_at")


async def test_where_it_ended_is_told(pool: RunningPool) -> None:
    await build(pool)
    [worker] = (await pool.run("tester:1.0.0")).workers
    await ask(worker, "crash")
    crashed = await restarted(pool, 1)
    assert crashed.reason == "restarted after: killed by signal 11"
    said = crashed.last_traceback.splitlines()
    assert said[0] == "Fatal Python error: Segmentation fault", said
    assert any(line.endswith("in generate") and "tester.py" in line for line in said), said
    await ask(crashed, "leave")
    left = await restarted(pool, 2)
    assert left.reason == "restarted after: worker tester-01 failed: SystemExit: 4 (exit status 1)"
    assert "in leave" in left.last_traceback
    await ask(left, "exit 3")
    assert "worker serves" in (await restarted(pool, 3)).last_traceback


async def test_one_that_ends_as_it_may_is_not_started_again(pool: RunningPool) -> None:
    await build(pool)
    settings = {"restart_policy": pb.RESTART_POLICY_ON_FAILURE}
    [worker] = (await pool.run("tester:1.0.0", **settings)).workers
    await ask(worker, "exit 3")
    failed = await restarted(pool, 1)
    assert failed.reason == "restarted after: exit status 3"
    await ask(failed, "exit 0")
    ended = await pool.until("tester-01", lambda now: now.state == pb.WORKER_STATE_STOPPED)
    assert (ended.reason, ended.pid, ended.restarts) == ("exit status 0", 0, 1)
    # It stays so through a pool's end and a pool's death, until somebody restarts it.
    await pool.end()
    await pool.start()
    await pool.kill()
    await pool.start()
    ended = await pool.worker("tester-01")
    assert (ended.state, ended.reason) == (pb.WORKER_STATE_STOPPED, "exit status 0")
    answer = await pool.pool.RestartAgent(pb.RestartAgentRequest(name="tester-01"), timeout=30)
    [now] = (await pool.pool.GetDeployment(pb.GetDeploymentRequest(agent="tester"))).deployment.workers
    assert ([now.worker_id], now.state) == (list(answer.worker_ids), pb.WORKER_STATE_READY)


async def test_a_worker_whose_event_loop_blocks(pool: RunningPool) -> None:
    await build(pool)
    health = pb.HealthCheck(
        interval_seconds=0.2, timeout_seconds=0.5, retries=1, failure_action=pb.HEALTH_FAILURE_ACTION_IGNORE
    )
    [worker] = (await pool.run("tester:1.0.0", health_check=health)).workers
    assert worker.weight == 100
    assert await harness.generate(worker.address, "block 0.3") == "block 0.3"
    lagging = await pool.until("tester-01", lambda now: now.lag_seconds > 0.25)
    assert lagging.weight < 20
    assert await harness.generate(worker.address, "block 1.5") == "block 1.5"
    await pool.until("tester-01", lambda now: now.state == pb.WORKER_STATE_READY and now.weight == 100)
    log = (pool.home.root.parent / "pool.log").read_text()
    assert "worker's health changed" in log
