"""The kernel's limits on real workers: memory, CPU, processes; and what the ledger refuses."""

import asyncio

import grpc
import pytest
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from grpc import aio

from agent_pool import resources
from tests.agent_pool import harness
from tests.agent_pool.harness import RunningPool

pytestmark = [pytest.mark.integration, pytest.mark.root]

EATER = """\
from agentruntime import Agent

class Tester(Agent):
    def generate(self, prompt, *, temperature, max_tokens):
        if prompt == "eat":
            kept = []
            while True:
                kept.append(bytearray(b"x" * 2**20))
        return prompt
"""

SPINNER = """\
import time
from agentruntime import Agent

class Tester(Agent):
    def generate(self, prompt, *, temperature, max_tokens):
        end = time.monotonic() + float(prompt)
        while time.monotonic() < end:
            pass
        return "spun"
"""

SENDER = """\
import socket, time
from agentruntime import Agent

class Tester(Agent):
    def generate(self, prompt, *, temperature, max_tokens):
        end = time.monotonic() + 2
        with socket.create_connection(("127.0.0.1", int(prompt))) as connection:
            while (left := end - time.monotonic()) > 0:
                connection.settimeout(left)
                try:
                    connection.send(bytes(65536))
                except TimeoutError:
                    break
        return "sent"
"""
SLOW_BPS = 20_000_000

# A program of its own: gRPC makes its threads anew after a fork, and waits for as long as it may not.
BOMB = """\
import subprocess, sys
from agentruntime import Agent

PROGRAM = '''
import os, signal, time
made = []
try:
    while len(made) < 1000:
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        made.append(pid)
except OSError as error:
    why = error.strerror
# A few stay, for the pool to end.
for pid in made[3:]:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
print(len(made), why)
'''

class Tester(Agent):
    def generate(self, prompt, *, temperature, max_tokens):
        with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as bomb:
            return bomb.stdout.readline().strip()
"""


async def test_a_worker_beyond_its_memory_is_killed_by_the_kernel_and_comes_back(pool: RunningPool) -> None:
    await pool.build(harness.project("eater", code=EATER))
    deployment = await pool.run("eater:1.0.0", resources=pb.Resources(memory_bytes=100_000_000))
    worker = deployment.workers[0]
    assert worker.resources.memory_limit_bytes == 100_000_000
    with pytest.raises(aio.AioRpcError) as failure:
        await harness.generate(worker.address, "eat")
    assert failure.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
    again = await pool.until("eater-01", lambda now: now.state == pb.WORKER_STATE_READY and now.restarts == 1)
    assert again.pid != worker.pid
    assert again.reason == "restarted after: OOM-killed at 100MB"
    assert await harness.generate(again.address, "hello") == "hello"
    log = (pool.home.logs / "agents" / "eater" / "eater-01.log").read_text()
    assert '"event": "worker ended", "reason": "OOM-killed at 100MB"' in log


async def test_the_reason_of_an_oom_kill_is_told(pool: RunningPool) -> None:
    await pool.build(harness.project("eater", code=EATER))
    deployment = await pool.run("eater:1.0.0", resources=pb.Resources(memory_limit_bytes=100_000_000))
    reasons: list[str] = []

    async def watch() -> None:
        async for event in pool.pool.WatchDeployments(pb.WatchDeploymentsRequest(), timeout=20):
            reasons.extend(worker.reason for worker in event.changed.workers if worker.reason)
            if reasons:
                return

    watching = asyncio.create_task(watch())
    with pytest.raises(aio.AioRpcError):
        await harness.generate(deployment.workers[0].address, "eat")
    await watching
    assert reasons[0] == "OOM-killed at 100MB"


async def test_a_spinner_gets_its_share_and_is_throttled(pool: RunningPool) -> None:
    await pool.build(harness.project("spinner", code=SPINNER))
    deployment = await pool.run("spinner:1.0.0", resources=pb.Resources(cpu_limit_millis=200))
    before = (await pool.worker("spinner-01")).usage
    assert await harness.generate(deployment.workers[0].address, "1.5") == "spun"
    after = (await pool.worker("spinner-01")).usage
    assert after.throttled_periods - before.throttled_periods >= 5
    assert after.throttled_seconds > before.throttled_seconds
    # A fifth of 1.5 seconds, and a period of grace on either side.
    assert after.cpu_seconds - before.cpu_seconds < 0.6


async def test_a_fork_bomb_hits_its_pids_limit(pool: RunningPool) -> None:
    await pool.build(harness.project("bomb", code=BOMB))
    deployment = await pool.run("bomb:1.0.0", resources=pb.Resources(pids_limit=40))
    made, _, why = (await harness.generate(deployment.workers[0].address, "go")).partition(" ")
    assert int(made) < 40
    assert why == "Resource temporarily unavailable"
    assert (await pool.worker("bomb-01")).usage.pids <= 40
    # What it forked goes with it; the fixture looks.


async def test_what_a_worker_costs_is_below_the_least_memory_limit(pool: RunningPool) -> None:
    await pool.run("echo", resources=pb.Resources(memory_bytes=resources.LEAST_MEMORY_LIMIT_BYTES))
    worker = await pool.worker("echo-01")
    assert await harness.generate(worker.address, "still here") == "still here"
    usage = (await pool.worker("echo-01")).usage
    assert 0 < usage.memory_bytes <= usage.memory_peak_bytes < resources.LEAST_MEMORY_LIMIT_BYTES
    assert 0 < usage.memory_pss_bytes < 20_000_000
    assert usage.pids > 0
    # Isolated: a network of its own, with nothing in it.
    assert usage.HasField("network_received_bytes")
    assert usage.network_received_bytes == usage.network_sent_rate == 0
    assert list(usage.gpus) == []
    for share in (False, True):
        (listed,) = (await pool.pool.ListWorkers(pb.ListWorkersRequest(agent="echo", memory_share=share))).workers
        assert (listed.usage.memory_pss_bytes > 0) is share


@pytest.mark.parametrize(
    ("asked", "code", "says"),
    [
        (pb.Resources(memory_bytes=10**15), grpc.StatusCode.RESOURCE_EXHAUSTED, "of memory free"),
        (pb.Resources(cpu_millis=900_000), grpc.StatusCode.RESOURCE_EXHAUSTED, "900 CPU asked"),
        (pb.Resources(memory_limit_bytes=10**6), grpc.StatusCode.INVALID_ARGUMENT, "below the 48MB"),
        (pb.Resources(cpu_limit_millis=1), grpc.StatusCode.INVALID_ARGUMENT, "not between 0.01"),
    ],
)
async def test_what_does_not_fit_is_refused(
    pool: RunningPool, asked: pb.Resources, code: grpc.StatusCode, says: str
) -> None:
    with pytest.raises(aio.AioRpcError) as failure:
        await pool.run("echo", resources=asked)
    assert failure.value.code() is code
    assert says in (failure.value.details() or "")
    assert not (await pool.pool.ListDeployments(pb.ListDeploymentsRequest())).deployments
    assert (await pool.pool.GetNode(pb.GetNodeRequest())).reserved == pb.NodeResources()


async def test_a_worker_with_the_hosts_network_is_held_to_its_rate(pool: RunningPool) -> None:
    await pool.build(harness.project("tester", code=SENDER))
    settings = {"network": pb.NETWORK_MODE_HOST, "isolation": pb.Isolation(network_limit_bps=SLOW_BPS)}
    # The second was a spare before.
    for replicas in (1, 2):
        deployment = await pool.run("tester:1.0.0", replicas=replicas, **settings)
        assert not deployment.notes
        assert deployment.settings.isolation.network_limit_bps == SLOW_BPS
        assert SLOW_BPS / 2 < await _sent_bps(deployment.workers[-1].address) < 1.7 * SLOW_BPS
    free = await pool.run("tester:1.0.0", agent="free", network=pb.NETWORK_MODE_HOST)
    assert await _sent_bps(free.workers[0].address) > 10 * SLOW_BPS


async def _sent_bps(address: str) -> float:
    """What a worker sends to this process in two seconds."""
    sent_bytes = 0

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent_bytes
        while part := await reader.read(2**20):
            sent_bytes += len(part)
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        await harness.generate(address, str(server.sockets[0].getsockname()[1]))
    return sent_bytes * 8 / 2


async def test_a_gpu_that_is_not_there(pool: RunningPool) -> None:
    have = (await pool.pool.GetNode(pb.GetNodeRequest())).capacity.gpus
    with pytest.raises(aio.AioRpcError) as failure:
        await pool.run("echo", resources=pb.Resources(gpus=have + 1))
    assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert failure.value.details() == f"this machine has {have} GPU{'' if have == 1 else 's'}, {have + 1} requested"
