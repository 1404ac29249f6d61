"""Which mode an agent gets, asked of a real pool."""

import contextlib
import os
from pathlib import Path

import grpc
import pytest
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime.home import Home
from grpc import aio

from agent_pool.images.container import ContainerImages
from tests import engine as engines
from tests.agent_pool import harness
from tests.agent_pool.harness import RunningPool

pytestmark = pytest.mark.integration
_IMAGE_TIMEOUT_S = 600.0
NOWHERE = {"DOCKER_HOST": "unix:///nonexistent/docker.sock", "AGENT_RUNTIME_MODE": ""}


def pool(directory: Path, environment: dict[str, str]) -> RunningPool:
    return RunningPool(Home(directory), {**os.environ, "AGENT_POOL_DRAIN_DELAY_S": "0", **environment})


async def test_without_an_engine_agents_are_processes_and_containers_are_refused(short_directory: Path) -> None:
    running = await pool(short_directory, NOWHERE).start()
    try:
        await running.build(harness.project("tester"))
        with pytest.raises(aio.AioRpcError) as failure:
            await running.run("tester:1.0.0", mode=pb.RUNTIME_MODE_CONTAINER)
        assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "no container engine answers at /nonexistent/docker.sock" in (failure.value.details() or "")
        assert (await running.run("tester:1.0.0")).settings.mode == pb.RUNTIME_MODE_NATIVE
        with pytest.raises(aio.AioRpcError) as failure:
            await running.pool.UpdateAgent(
                pb.UpdateAgentRequest(name="tester", settings=pb.AgentSettings(mode=pb.RUNTIME_MODE_CONTAINER))
            )
        assert "no container engine answers" in (failure.value.details() or "")
        node = await running.pool.GetNode(pb.GetNodeRequest())
        (engine,) = [each for each in node.enforcement if each.mode == pb.RUNTIME_MODE_CONTAINER]
        assert (engine.what, engine.enforced) == ("engine", False)
    finally:
        await running.end()
    assert running.leftovers() == []


@pytest.mark.timeout(900)
async def test_where_an_engine_answers_agents_are_containers(short_directory: Path, engine: engines.Engine) -> None:
    running = await pool(short_directory, {"AGENT_RUNTIME_MODE": "", **engine.environment}).start()
    image = await running.build(harness.project("tester"))
    try:
        with pytest.raises(aio.AioRpcError, match="leave out --venv"):
            await running.run("tester:1.0.0", venv="/venv", mode=pb.RUNTIME_MODE_CONTAINER)
        # The first container needs its image to be made.
        first = pb.RunAgentRequest(image="tester:1.0.0")
        deployment = (await running.pool.RunAgent(first, timeout=_IMAGE_TIMEOUT_S)).deployment
        assert deployment.settings.mode == pb.RUNTIME_MODE_CONTAINER
        (worker,) = deployment.workers
        assert len(worker.container_id) == 64
        assert await harness.generate(worker.address, "hello") == "HELLO"
        native = pb.AgentSettings(mode=pb.RUNTIME_MODE_NATIVE)
        rolled = (await running.pool.UpdateAgent(pb.UpdateAgentRequest(name="tester", settings=native))).deployment
        assert (rolled.settings.mode, rolled.workers[0].container_id) == (pb.RUNTIME_MODE_NATIVE, "")
        assert await harness.generate(rolled.workers[0].address, "hello") == "HELLO"
        back = (await running.pool.RollbackAgent(pb.RollbackAgentRequest(agent="tester"))).deployment
        await running.kill()
        await running.start()
        adopted = await running.until("tester-01", lambda worker: worker.state == pb.WORKER_STATE_READY)
        assert adopted.container_id == back.workers[0].container_id != ""
        assert await harness.generate(adopted.address, "again") == "AGAIN"
        await running.stop("tester")
    finally:
        await running.end()
        with contextlib.closing(engine.client()) as client:
            await ContainerImages(client, engine.base_image).remove(image.digest)
    assert running.leftovers() == []
