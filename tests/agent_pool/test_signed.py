"""A pool that demands signatures: what is not signed does not run, not a line of it, however it is asked for."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime._proto.uapi.v1 import image_service_pb2 as image_pb2
from agentruntime.home import Home
from agentruntime.names import ImageReference
from agentruntime.signing import Claim, PrivateKey
from grpc import aio

from tests.agent_pool.harness import RunningPool, project
from tests.waiting import eventually

pytestmark = pytest.mark.integration
KEY = PrivateKey.generate()


@pytest.fixture
async def pool(short_directory: Path, tmp_path: Path) -> AsyncIterator[RunningPool]:
    (tmp_path / "release.pub").write_bytes(KEY.public_pem())
    running = RunningPool(
        Home(short_directory),
        {
            **os.environ,
            "AGENT_POOL_DRAIN_DELAY_S": "0",
            "AGENT_POOL_TRUSTED_KEYS": str(tmp_path),
            "AGENT_POOL_REQUIRE_SIGNED": "true",
        },
    )
    await running.start()
    try:
        yield running
    finally:
        await running.end()
    assert running.leftovers() == []


async def sign(pool: RunningPool, image: image_pb2.Image) -> None:
    signed = KEY.sign(Claim(ImageReference.parse(image.reference).name, image.digest))
    await pool.images.AddSignature(
        image_pb2.AddSignatureRequest(
            reference=image.reference, signature=image_pb2.Signature(payload=signed.payload, value=signed.value)
        )
    )


def refused(call: pytest.ExceptionInfo[aio.AioRpcError]) -> None:
    error = status.decode(call.value)
    assert call.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert (error.reason, isinstance(error, errors.ImageNotTrusted)) == ("IMAGE_NOT_TRUSTED", True)


async def test_only_what_is_signed_runs(pool: RunningPool, tmp_path: Path) -> None:
    # It would say so in the pool's logs if it were imported.
    first = await pool.build(project("tester", before="print('IMPORTED', flush=True)"), "tester:1")
    with pytest.raises(aio.AioRpcError) as call:
        await pool.run("tester:1")
    refused(call)
    for replicas in (0, 1):
        with pytest.raises(aio.AioRpcError) as call:
            await pool.run("tester:1", replicas=replicas)
        refused(call)
    said = [path.read_bytes() for path in pool.home.logs.rglob("*") if path.is_file()]
    assert not any(b"IMPORTED" in text for text in said)

    # What came with the platform runs; under another name it is an image like any other.
    await pool.run("echo", replicas=0)
    await pool.images.TagImage(image_pb2.TagImageRequest(reference="echo", new_reference="mine:1"))
    with pytest.raises(aio.AioRpcError) as call:
        await pool.run("mine:1", agent="mine")
    refused(call)

    await sign(pool, first)
    listed = {each.reference: each for each in (await pool.images.ListImages(image_pb2.ListImagesRequest())).images}
    assert (listed["tester:1"].signatures, listed["tester:1"].signed_by) == (1, "release")
    assert (listed["mine:1"].signatures, listed["mine:1"].signed_by) == (0, "")
    await pool.run("tester:1")

    # An update to what is not signed, and to the tag that was, built again.
    await pool.build(project("tester", body="again = 1"), "tester:1")
    with pytest.raises(aio.AioRpcError) as call:
        await pool.pool.UpdateAgent(pb.UpdateAgentRequest(name="tester", image="tester:1"), timeout=30)
    refused(call)
    deployment = (await pool.pool.GetDeployment(pb.GetDeploymentRequest(agent="tester"))).deployment
    assert (deployment.workers[0].state, deployment.revision) == (pb.WORKER_STATE_READY, 1)


async def test_a_key_that_is_taken_away_counts_no_more(pool: RunningPool, tmp_path: Path) -> None:
    image = await pool.build(project("tester"), "tester:1")
    await sign(pool, image)
    deployment = await pool.run("tester:1")
    # A tag that moves takes nothing from the agent that runs: its worker may be started again.
    await pool.build(project("tester", body="again = 1"), "tester:1")
    os.kill(deployment.workers[0].pid, 9)

    async def restarted() -> pb.Worker | None:
        found = (await pool.pool.GetDeployment(pb.GetDeploymentRequest(agent="tester"))).deployment
        worker = found.workers[0]
        return worker if worker.state == pb.WORKER_STATE_READY and worker.restarts == 1 else None

    worker = await eventually(restarted, timeout_s=30)
    (tmp_path / "release.pub").unlink()
    os.kill(worker.pid, 9)

    async def refuses() -> bool:
        found = (await pool.pool.GetDeployment(pb.GetDeploymentRequest(agent="tester"))).deployment
        return "is signed by none of the trusted keys" in found.workers[0].reason

    await eventually(refuses, timeout_s=30)
    with pytest.raises(aio.AioRpcError) as call:
        await pool.pool.RestartAgent(pb.RestartAgentRequest(name="tester"), timeout=30)
    refused(call)
    # The key is back, and so is the agent.
    (tmp_path / "release.pub").write_bytes(KEY.public_pem())
    await pool.pool.RestartAgent(pb.RestartAgentRequest(name="tester"), timeout=30)


async def test_a_policy_without_keys_does_not_start(short_directory: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agent_pool", "--home", str(short_directory), stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "AGENT_POOL_REQUIRE_SIGNED": "true"},
    )  # fmt: skip
    _, said = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, b"AGENT_POOL_REQUIRE_SIGNED needs public keys" in said) == (1, True)
