"""The spare of a running revision: employed by the next start, replaced, and gone with its agent."""

import os
import signal

import pytest
from agentruntime import processes
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb

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
    """Of the spare, once it has joined its group."""

    def find() -> int:
        pids = [pid for group in groups(pool) if "-spare." in group.name for pid in group.pids()]
        workers = {worker.pid for worker in known}
        return next((pid for pid in pids if pid not in workers), 0)

    known = (await pool.pool.ListWorkers(pb.ListWorkersRequest())).workers
    return int(await eventually(find))


async def test_the_next_worker_is_the_spare(pool: RunningPool) -> None:
    await pool.run("echo")
    pid = await spare_pid(pool)
    two = await pool.run("echo", replicas=2)
    assert [worker.pid for worker in two.workers][1] == pid
    assert await harness.generate(two.workers[1].address, "hello") == "hello"
    assert await spare_pid(pool) != pid


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
