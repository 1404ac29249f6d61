"""The spare of a running revision: employed by the next start, replaced, and gone with its agent."""

import asyncio
import os
import signal
import time

import psutil
import pytest
from agentruntime import processes, status
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from grpc import aio

from agent_pool.cgroups import detect
from agent_pool.cgroups.base import Group
from tests.agent_pool import harness
from tests.agent_pool.harness import RunningPool
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.root]


def groups(pool: RunningPool) -> list[Group]:
    hierarchy = detect.hierarchy(detect.here(), pool.home.root)
    assert hierarchy is not None
    return [hierarchy.group(name) for name in hierarchy.names()]


async def spare_pid(pool: RunningPool) -> int:
    """Of the spare, once it waits, and the pool has heard of it from its template, which may be late with that."""

    def waits(pid: int) -> bool:
        process = psutil.Process(pid)
        return process.num_threads() > 1 and time.time() - process.create_time() > 1

    def find() -> int:
        pids = [pid for group in groups(pool) if "-spare." in group.name for pid in group.pids()]
        workers = {worker.pid for worker in known}
        return next((pid for pid in pids if pid not in workers and waits(pid)), 0)

    known = (await pool.pool.ListWorkers(pb.ListWorkersRequest())).workers
    return int(await eventually(find))


async def test_the_next_worker_is_the_spare(pool: RunningPool) -> None:
    await pool.run("echo")
    pid = await spare_pid(pool)
    two = await pool.run("echo", replicas=2)
    assert [worker.pid for worker in two.workers][1] == pid
    assert await harness.generate(two.workers[1].address, "hello") == "hello"
    assert await spare_pid(pool) != pid


async def test_a_spare_serves_as_its_revision_says(pool: RunningPool) -> None:
    slow = "async def generate(self, prompt, *, temperature, max_tokens):\n        import asyncio\n"
    slow += "        await asyncio.sleep(60)\n        return prompt"
    await pool.build(
        harness.project("tester", code=f"from agentruntime import Agent\nclass Tester(Agent):\n    {slow}\n")
    )
    serving = pb.Serving(concurrency=1, queue=0)
    await pool.run("tester:1.0.0", serving=serving)
    pid = await spare_pid(pool)
    worker = (await pool.run("tester:1.0.0", replicas=2, serving=serving)).workers[1]
    assert worker.pid == pid
    calls = [asyncio.create_task(harness.generate(worker.address, "x")) for _ in range(2)]
    done, held = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=10)
    error = done.pop().exception()
    assert isinstance(error, aio.AioRpcError)
    assert status.decode(error).reason == "QUEUE_FULL"
    held.pop().cancel()


async def test_a_spare_that_died_costs_the_next_start_only_time(pool: RunningPool) -> None:
    await pool.run("echo")
    pid = await spare_pid(pool)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not processes.start_time(pid))
    two = await pool.run("echo", replicas=2)
    assert two.workers[1].pid != pid
    assert await harness.generate(two.workers[1].address, "hello") == "hello"


async def test_a_stopped_agent_has_no_spare(pool: RunningPool) -> None:
    await pool.run("echo")
    await spare_pid(pool)
    await pool.stop("echo")
    assert groups(pool) == []
