"""Agents that fail to import, to start or to become healthy: each is told with its own traceback, nothing is left."""

import grpc
import pytest
from agentruntime import status
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from grpc import aio

from tests.agent_pool import harness
from tests.agent_pool.harness import RunningPool

pytestmark = [pytest.mark.integration, pytest.mark.root]

QUICK = pb.HealthCheck(start_timeout_seconds=1.0)


@pytest.mark.parametrize(
    ("before", "body", "says"),
    [
        ("import no_such_thing", "pass", ["failed to import", "No module named 'no_such_thing'", "tester.py"]),
        ("raise ValueError('at import')", "pass", ["failed to import", "ValueError: at import", "Traceback"]),
        ("import sys; sys.exit(3)", "pass", ["SystemExit: 3", "Traceback"]),
        ("import os; os._exit(3)", "pass", ["failed to import", "ended while it was loaded"]),
        (
            "",
            "async def start(self):\n        raise RuntimeError('no model here')",
            ["worker tester-01 failed", "RuntimeError: no model here", "Traceback", "tester.py"],
        ),
        (
            "import os, sys",
            "async def start(self):\n        print('last words', flush=True); os._exit(7)",
            ["exit status 7", "last words"],
        ),
        (
            "import time; time.sleep(60)",
            "pass",
            ["did not finish its import within 1s"],
        ),
        (
            "import asyncio",
            "async def start(self):\n        await asyncio.sleep(60)",
            ["did not start to serve within 1s"],
        ),
        (
            "import time",
            "async def start(self):\n        time.sleep(60)",
            ["did not start to serve within 1s"],
        ),
    ],
)
async def test_an_agent_that_fails(pool: RunningPool, before: str, body: str, says: list[str]) -> None:
    await pool.build(harness.project("tester", before=before, body=body))
    with pytest.raises(aio.AioRpcError) as failure:
        await pool.run("tester:1.0.0", health_check=QUICK)
    assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    error = status.decode(failure.value)
    assert error.reason == "AGENT_FAILED"
    for part in says:
        assert part in error.message
    assert not (await pool.pool.ListDeployments(pb.ListDeploymentsRequest())).deployments
    assert (await pool.pool.GetNode(pb.GetNodeRequest())).reserved == pb.NodeResources()
    left = pool.leftovers()
    # The pool's own base may stay; of the agent there is nothing.
    assert not [entry for entry in left if "group" in entry or "/w/" in entry or "/i-" in entry]


async def test_a_worker_that_dies_is_told_why_and_comes_back(pool: RunningPool) -> None:
    body = "async def start(self):\n        import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    await pool.build(harness.project("tester", body=body))
    first = (await pool.run("tester:1.0.0")).workers[0]
    harness.kill(first.pid)
    again = await pool.until("tester-01", lambda now: now.state == pb.WORKER_STATE_READY and now.restarts == 1)
    assert again.pid != first.pid
    assert await harness.generate(again.address, "hello") == "HELLO"


async def test_one_bad_replica_takes_nothing_of_the_good_ones(pool: RunningPool) -> None:
    code = """\
import os
from agentruntime import Agent

class Tester(Agent):
    async def start(self):
        if os.path.basename(os.path.dirname(os.environ.get("MARK", ""))) or os.getuid() % 4096 > 1:
            raise RuntimeError("only one of me")

    def generate(self, prompt, *, temperature, max_tokens):
        return prompt
"""
    await pool.build(harness.project("tester", code=code))
    deployment = await pool.run("tester:1.0.0")
    with pytest.raises(aio.AioRpcError) as failure:
        await pool.run("tester:1.0.0", replicas=3)
    assert "only one of me" in (failure.value.details() or "")
    now = (await pool.pool.GetDeployment(pb.GetDeploymentRequest(agent="tester"))).deployment
    assert now.replicas == 1
    assert [worker.pid for worker in now.workers] == [deployment.workers[0].pid]
    assert await harness.generate(now.workers[0].address, "fine") == "fine"


async def test_a_template_that_dies_is_started_again_on_the_next_need(pool: RunningPool) -> None:
    deployment = await pool.run("echo")
    for pid in harness.processes(pool.home):
        if pid not in (pool.pid, deployment.workers[0].pid):
            harness.kill(pid)
    assert await harness.generate(deployment.workers[0].address, "alive") == "alive"
    more = await pool.run("echo", replicas=2)
    assert [worker.state for worker in more.workers] == [pb.WORKER_STATE_READY] * 2
    assert await harness.generate(more.workers[1].address, "too") == "too"
