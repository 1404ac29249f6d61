"""Other resources for what runs: caps that move in the kernel, as a new revision of the same workers."""

from pathlib import Path

import grpc
import pytest
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from grpc import aio

from agent_pool.cgroups import detect
from agent_pool.cgroups.base import read_int
from tests.agent_pool import harness
from tests.agent_pool.harness import RunningPool

pytestmark = [pytest.mark.integration, pytest.mark.root]

MB = 10**6
KEEPER = """\
from agentruntime import Agent

class Tester(Agent):
    kept = b""

    def generate(self, prompt, *, temperature, max_tokens):
        if prompt.isdigit():
            self.kept = b"x" * int(prompt)
        return prompt
"""


async def scale(pool: RunningPool, agent: str, **resources: int) -> pb.Deployment:
    request = pb.ScaleAgentRequest(agent=agent, resources=pb.Resources(**resources))
    return (await pool.pool.ScaleAgent(request, timeout=60)).deployment


def caps(pool: RunningPool, worker_id: str) -> tuple[int, int]:
    """Of a worker's group, as the kernel has them: memory in bytes, CPU in thousandths of a core (0 for no cap)."""
    hierarchy = detect.hierarchy(detect.here(), pool.home.root)
    assert hierarchy is not None
    [pid] = [int(line) for line in (pool.home.root / "pid").read_text().split()]
    groups = [hierarchy.group(name) for name in hierarchy.names()]
    group = next(group for group in groups if pid in group.pids())
    return max(memory(path) for path in group.directories()), max(cpu(path) for path in group.directories())


def memory(directory: Path) -> int:
    return read_int(directory / "memory.limit_in_bytes") or read_int(directory / "memory.max")


def cpu(directory: Path) -> int:
    quota_us = read_int(directory / "cpu.cfs_quota_us")
    if (directory / "cpu.max").exists():
        first = (directory / "cpu.max").read_text().split()[0]
        quota_us = int(first) if first.isdigit() else 0
    return quota_us // 100


async def caps_of(pool: RunningPool, worker: pb.Worker) -> tuple[int, int]:
    (pool.home.root / "pid").write_text(str(worker.pid))
    return caps(pool, worker.worker_id)


def rounded(memory_bytes: int) -> int:
    """The kernel counts in pages."""
    return memory_bytes // 4096 * 4096


async def test_caps_move_under_workers_that_run(pool: RunningPool) -> None:
    await pool.build(harness.project("tester", code=KEEPER))
    before = await pool.run("tester:1.0.0", replicas=2, resources=pb.Resources(memory_bytes=128 * MB, cpu_millis=100))
    assert await caps_of(pool, before.workers[0]) == (rounded(128 * MB), 100)
    scaled = await scale(pool, "tester", memory_bytes=256 * MB, cpu_millis=200)
    assert [each.pid for each in scaled.workers] == [each.pid for each in before.workers]
    assert [each.revision for each in scaled.workers] == [2, 2]
    assert {each.resources.memory_limit_bytes for each in scaled.workers} == {256 * MB}
    for worker in scaled.workers:
        assert await caps_of(pool, worker) == (rounded(256 * MB), 200)
    reserved = (await pool.pool.GetNode(pb.GetNodeRequest())).reserved
    assert (reserved.cpu_millis, reserved.memory_bytes) == (400, 512 * MB)
    # The same again is nothing new, and one more has the new caps too.
    assert (await scale(pool, "tester", memory_bytes=256 * MB)).revision == 2
    more = await pool.run("tester:1.0.0", replicas=3)
    assert await caps_of(pool, more.workers[2]) == (rounded(256 * MB), 200)
    # A worker that dies comes back with what it had last.
    harness.kill(more.workers[0].pid)
    again = await pool.until("tester-01", lambda now: now.restarts == 1 and now.state == pb.WORKER_STATE_READY)
    assert await caps_of(pool, again) == (rounded(256 * MB), 200)
    kept = (await pool.pool.ListRevisions(pb.ListRevisionsRequest(agent="tester"))).revisions
    assert [(each.number, each.cause, each.resources.cpu_millis) for each in kept] == [
        (2, "scale", 200),
        (1, "run", 100),
    ]


async def test_what_does_not_fit_changes_nothing(pool: RunningPool) -> None:
    await pool.build(harness.project("tester", code=KEEPER))
    before = await pool.run("tester:1.0.0", replicas=2, resources=pb.Resources(memory_bytes=256 * MB))
    [first, second] = before.workers
    # The second one uses more than the first: when its cap cannot move, the first one's moves back.
    assert await harness.generate(second.address, str(150 * MB))

    async def refused(code: grpc.StatusCode, says: str, **resources: int) -> None:
        with pytest.raises(aio.AioRpcError) as failure:
            await scale(pool, "tester", **resources)
        assert failure.value.code() is code
        assert says in (failure.value.details() or "")
        now = (await pool.pool.GetDeployment(pb.GetDeploymentRequest(agent="tester"))).deployment
        assert (now.revision, [each.revision for each in now.workers]) == (1, [1, 1])
        assert now.settings.resources.memory_limit_bytes == 256 * MB
        for worker in (first, second):
            assert (await caps_of(pool, worker))[0] == rounded(256 * MB)

    await refused(grpc.StatusCode.FAILED_PRECONDITION, "are in use", memory_bytes=100 * MB)
    capacity = (await pool.pool.GetNode(pb.GetNodeRequest())).capacity
    await refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "free", memory_bytes=capacity.memory_bytes)
    await refused(grpc.StatusCode.INVALID_ARGUMENT, "below", memory_bytes=1 * MB)
    assert (await pool.pool.GetNode(pb.GetNodeRequest())).reserved.memory_bytes == 512 * MB
    assert len((await pool.pool.ListRevisions(pb.ListRevisionsRequest(agent="tester"))).revisions) == 1


async def test_a_pool_that_is_killed_after_caps_moved_takes_the_workers_over(pool: RunningPool) -> None:
    before = await pool.run("echo", resources=pb.Resources(memory_bytes=128 * MB))
    await scale(pool, "echo", memory_bytes=256 * MB)
    await pool.kill()
    await pool.start()
    taken = await pool.until("echo-01", lambda now: now.state == pb.WORKER_STATE_READY)
    assert taken.pid == before.workers[0].pid
    assert (taken.revision, taken.resources.memory_bytes) == (2, 256 * MB)
    assert (await pool.pool.GetNode(pb.GetNodeRequest())).reserved.memory_bytes == 256 * MB
    # The template that made it is still there, and tells how it ends.
    harness.kill(taken.pid)
    again = await pool.until("echo-01", lambda now: now.restarts == 1 and now.state == pb.WORKER_STATE_READY)
    assert "killed by signal 9" in again.reason
    assert (await caps_of(pool, again))[0] == rounded(256 * MB)
