"""Running, scaling and stopping agents, and what a pool that ends or dies leaves to the next."""

import asyncio
from pathlib import Path

import grpc
import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime._proto.uapi.v1 import image_service_pb2
from agentruntime.home import Home
from grpc import aio

from agent_pool.asked import Asked, AskedHealth, AskedPolicies
from agent_pool.deployment import RunRequest
from agent_pool.drivers.process import ProcessDriver
from agent_pool.images import build
from agent_pool.images.catalog import Catalog
from agent_pool.images.layout import ImageLayout
from agent_pool.ledger import Capacity, Ledger
from agent_pool.logs import LogStore
from agent_pool.pool import Pool
from agent_pool.resources import Requested
from agent_pool.secrets.vault import Vault
from agent_pool.settings import PoolSettings
from agent_pool.state import StateStore
from tests.agent_pool import harness
from tests.agent_pool.harness import RunningPool

pytestmark = [pytest.mark.integration, pytest.mark.root]


def ids(deployment: pb.Deployment) -> list[str]:
    return [worker.worker_id for worker in deployment.workers if worker.state == pb.WORKER_STATE_READY]


async def test_run_scale_and_stop(pool: RunningPool) -> None:
    first = await pool.run("echo")
    assert ids(first) == ["echo-01"]
    assert first.services == ["uapi.v1.TextGenerationService"]
    assert first.descriptors
    assert first.idempotent
    assert not first.notes
    assert await harness.generate(first.workers[0].address, "one two") == "one two"

    same = await pool.run("echo")
    assert [worker.pid for worker in same.workers] == [first.workers[0].pid]
    assert same.revision == first.revision == 1

    three = await pool.run("echo", replicas=3)
    assert ids(three) == ["echo-01", "echo-02", "echo-03"]
    reserved = (await pool.pool.GetNode(pb.GetNodeRequest())).reserved
    assert (reserved.cpu_millis, reserved.memory_bytes) == (60, 192_000_000)

    await pool.stop("echo-02")
    listed = (await pool.pool.ListWorkers(pb.ListWorkersRequest(agent="echo"))).workers
    assert [worker.worker_id for worker in listed] == ["echo-01", "echo-03"]
    now = (await pool.pool.GetDeployment(pb.GetDeploymentRequest(agent="echo"))).deployment
    assert now.replicas == 2

    await pool.stop("echo")
    stopped = (await pool.pool.GetDeployment(pb.GetDeploymentRequest(agent="echo"))).deployment
    assert stopped.stopped
    assert not stopped.workers
    await pool.stop("echo")  # idempotent

    again = await pool.run("echo")
    assert again.revision == 1
    assert not again.stopped
    assert len(ids(again)) == 2


async def test_what_is_refused(pool: RunningPool) -> None:
    await pool.run("echo", agent="helper", resources=pb.Resources(memory_bytes=100_000_000))

    async def refused(code: grpc.StatusCode, says: str, image: str = "echo", **fields: object) -> None:
        with pytest.raises(aio.AioRpcError) as failure:
            await pool.run(image, **fields)
        assert failure.value.code() is code
        assert says in (failure.value.details() or "")

    await refused(grpc.StatusCode.FAILED_PRECONDITION, "agent update helper", image="mock-ai", agent="helper")
    await refused(
        grpc.StatusCode.FAILED_PRECONDITION,
        "another --memory",
        agent="helper",
        resources=pb.Resources(memory_bytes=2 * 10**8),
    )
    await refused(grpc.StatusCode.NOT_FOUND, "there is echo:latest", image="echo:9")
    await refused(grpc.StatusCode.NOT_FOUND, "agent build", image="nothing")
    await refused(grpc.StatusCode.INVALID_ARGUMENT, "not an agent name", agent="../up")
    await refused(grpc.StatusCode.INVALID_ARGUMENT, "not a log level", log_level="loud")
    await refused(grpc.StatusCode.FAILED_PRECONDITION, "no bin/python", venv="/nowhere", agent="other")
    for name, code in (("nobody", grpc.StatusCode.NOT_FOUND), ("helper-09", grpc.StatusCode.NOT_FOUND)):
        with pytest.raises(aio.AioRpcError) as failure:
            await pool.stop(name)
        assert failure.value.code() is code
    assert len((await pool.pool.ListDeployments(pb.ListDeploymentsRequest())).deployments) == 1


async def test_a_venv_without_the_platform_is_told_what_to_install(pool: RunningPool, tmp_path: Path) -> None:
    import venv

    await asyncio.to_thread(venv.create, tmp_path / "bare", with_pip=False, symlinks=True)
    with pytest.raises(aio.AioRpcError) as failure:
        await pool.run("echo", venv=str(tmp_path / "bare"))
    assert f"{tmp_path}/bare/bin/pip install " in (failure.value.details() or "")


async def test_watchers_see_everything_and_then_changes(pool: RunningPool) -> None:
    await pool.run("echo")
    call = pool.pool.WatchDeployments(pb.WatchDeploymentsRequest(), timeout=30)
    events = call.__aiter__()
    first = await events.__anext__()
    assert ids(first.changed) == ["echo-01"]
    assert not first.changed.workers[0].HasField("usage")
    assert (await events.__anext__()).synced
    running = asyncio.create_task(pool.run("mock-ai"))
    while True:
        event = await events.__anext__()
        if event.changed.agent == "mock-ai" and ids(event.changed) == ["mock-ai-01"]:
            break
    await running
    await pool.stop("mock-ai")
    while not (event := await events.__anext__()).changed.stopped:
        pass
    await pool.build(harness.project("bad", before="raise ValueError"))
    with pytest.raises(aio.AioRpcError):
        await pool.run("bad:1.0.0")
    while (await events.__anext__()).removed != "bad":
        pass
    call.cancel()


async def test_a_pool_that_is_stopped_comes_back_with_its_agents(pool: RunningPool) -> None:
    await pool.run("echo", replicas=2)
    await pool.run("mock-ai")
    await pool.stop("mock-ai")
    await pool.end()
    assert pool.process is not None
    assert pool.process.returncode == 0
    assert pool.leftovers() == []
    await pool.start()
    for worker_id in ("echo-01", "echo-02"):
        await pool.until(worker_id, lambda now: now.state == pb.WORKER_STATE_READY)
    stopped = (await pool.pool.GetDeployment(pb.GetDeploymentRequest(agent="mock-ai"))).deployment
    assert stopped.stopped
    assert not stopped.workers


async def test_a_pool_that_was_killed_takes_its_workers_over(pool: RunningPool) -> None:
    before = await pool.run("echo", replicas=2)
    kept, lost = before.workers
    await pool.kill()
    # They serve without their pool.
    assert await harness.generate(kept.address, "still here") == "still here"
    harness.kill(lost.pid)
    await pool.start()
    adopted = await pool.until("echo-01", lambda now: now.state == pb.WORKER_STATE_READY)
    assert adopted.pid == kept.pid
    replaced = await pool.until("echo-02", lambda now: now.state == pb.WORKER_STATE_READY)
    assert replaced.pid != lost.pid
    more = await pool.run("echo", replicas=3)
    assert len(ids(more)) == 3
    await pool.stop("echo-01")
    harness.kill(replaced.pid)
    again = await pool.until("echo-02", lambda now: now.state == pb.WORKER_STATE_READY and now.pid != replaced.pid)
    assert await harness.generate(again.address, "fine") == "fine"


async def test_a_home_has_one_pool(pool: RunningPool) -> None:
    second = await asyncio.create_subprocess_exec(
        "python", "-m", "agent_pool", "--home", str(pool.home.root), stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(second.communicate(), 20)
    assert second.returncode == 1
    assert said.decode().strip().splitlines() == [
        f"another pool already runs on {pool.home.state}; stop it with `agent down`, or set UAPI_HOME"
    ]
    await pool.run("echo")


async def test_images_over_the_wire(pool: RunningPool) -> None:
    image = await pool.build(harness.project("tester"), "tester:2")
    again = await pool.build(harness.project("tester"), "tester:3")
    assert image.digest == again.digest
    listed = (await pool.images.ListImages(image_service_pb2.ListImagesRequest())).images
    assert [each.reference for each in listed] == [
        "echo:latest", "mock-ai:latest", "tester:2", "tester:3", "text-generator:latest",
    ]  # fmt: skip
    assert [each.built_in for each in listed] == [True, True, False, False, True]
    await pool.run("tester:2")

    async def refused(reference: str, code: grpc.StatusCode) -> None:
        with pytest.raises(aio.AioRpcError) as failure:
            await pool.images.RemoveImage(image_service_pb2.RemoveImageRequest(reference=reference))
        assert failure.value.code() is code

    await refused("tester:2", grpc.StatusCode.FAILED_PRECONDITION)
    await refused("echo", grpc.StatusCode.FAILED_PRECONDITION)
    await refused("tester:9", grpc.StatusCode.NOT_FOUND)
    await pool.stop("tester")
    for reference in ("tester:2", "tester:3"):
        await pool.images.RemoveImage(image_service_pb2.RemoveImageRequest(reference=reference))
    await refused("tester:2", grpc.StatusCode.NOT_FOUND)
    assert not (pool.home.bundles / image.digest.removeprefix("sha256:")).exists()


async def test_logs_of_an_agent(pool: RunningPool) -> None:
    body = "async def start(self):\n        print('bare line', flush=True)"
    await pool.build(harness.project("tester", body=body))
    await pool.run("tester:1.0.0", replicas=2)

    async def lines(name: str, **fields: object) -> list[pb.StreamLogsResponse]:
        request = pb.StreamLogsRequest(name=name, **fields)  # type: ignore[arg-type]  # fields of the message
        return [line async for line in pool.pool.StreamLogs(request, timeout=20)]

    all_lines = await lines("tester")
    assert {line.worker_id for line in all_lines} == {"tester-01", "tester-02"}
    assert (await lines("tester-01"))[0].line == "bare line"
    assert await lines("tester", level="ERROR") == []
    assert len(await lines("tester", tail=1)) == 1
    with pytest.raises(aio.AioRpcError) as failure:
        await lines("nobody")
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND

    follow = pool.pool.StreamLogs(pb.StreamLogsRequest(name="tester", follow=True, tail=0), timeout=20)
    await asyncio.sleep(0)
    stopping = asyncio.create_task(pool.stop("tester-02"))
    async for line in follow:
        if "worker drains" in line.line:
            assert line.worker_id == "tester-02"
            break
    follow.cancel()
    await stopping


async def test_an_agent_with_requirements_of_its_own(pool: RunningPool, tmp_path: Path) -> None:
    wheel_source = tmp_path / "saying"
    (wheel_source / "saying").mkdir(parents=True)
    (wheel_source / "saying" / "__init__.py").write_text("WORD = 'from a requirement'\n")
    (wheel_source / "pyproject.toml").write_text(
        "[build-system]\nrequires = ['hatchling']\nbuild-backend = 'hatchling.build'\n"
        "[project]\nname = 'saying'\nversion = '1.0'\n"
    )
    manifest = f'python:\n  requirements: ["saying @ file://{wheel_source}"]\n'
    body = "word = __import__('saying').WORD\n    async def start(self):\n        print(self.word, flush=True)"
    await pool.build(harness.project("tester", body=body, manifest=manifest))
    await pool.run("tester:1.0.0")
    request = pb.StreamLogsRequest(name="tester-01", tail=5)
    assert "from a requirement" in [line.line async for line in pool.pool.StreamLogs(request, timeout=20)]

    wrong = harness.project("wrong", manifest='python:\n  requirements: ["no-such-thing @ file:///nowhere"]\n')
    with pytest.raises(aio.AioRpcError) as failure:
        await pool.build(wrong)
    assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "pip cannot install" in (failure.value.details() or "")


async def test_without_control_groups_defaults_degrade_and_wishes_are_refused(
    short_directory: Path,
) -> None:
    home = Home(short_directory)
    home.create()
    settings = PoolSettings(drain_delay_s=0)
    logs = LogStore(home.logs)
    vault = Vault(home.state, home.secrets_key)
    driver = ProcessDriver(home, logs, None, settings.worker_environment, vault=vault)
    pool = Pool(
        settings, driver, Ledger(Capacity(2000, 10**10)), Catalog(home, [], set), StateStore(home.state), vault=vault
    )
    await pool.catalog.prepare()
    try:
        deployment = await pool.run(RunRequest("echo"))
        assert [note.partition(":")[0] for note in deployment.notes] == [
            "no memory limit is enforced", "no pids limit is enforced",
        ]  # fmt: skip
        [worker] = deployment.workers.values()
        assert await harness.generate(worker.address, "hello") == "hello"
        assert driver.stats(worker.worker_id).memory_bytes > 0
        asked = Asked(resources=Requested(memory_bytes=10**8))
        with pytest.raises(errors.NotEnforceable, match="--allow-unenforced"):
            await pool.run(RunRequest("echo", "other", asked=asked))
        await pool.run(RunRequest("echo", "other", asked=asked, allow_unenforced=True))
        # A hanging import is ended without a group, too.
        project = short_directory / "hanging"
        project.mkdir()
        (project / "agent.yaml").write_text("name: hang\nversion: '1'\nentrypoint: hang:Hang\n")
        (project / "hang.py").write_text("import time; time.sleep(60)")
        await build.build(ImageLayout(home.images), project, "hang:1", pip=[], progress=lambda _: None)
        with pytest.raises(errors.AgentFailed, match="did not finish its import"):
            await pool.run(RunRequest("hang:1", policies=AskedPolicies(health=AskedHealth(start_timeout_s=0.5))))
    finally:
        await pool.close(1.0)
    assert harness.processes(home) == []
