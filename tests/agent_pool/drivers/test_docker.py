"""The Docker driver against a real engine: what it starts, how that ends, and that nothing is left of it."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
from agentruntime import errors
from agentruntime.home import Home
from grpc import aio

from agent_pool.cgroups.base import Limits
from agent_pool.drivers import slots
from agent_pool.drivers.base import Launch, Revision, Running
from agent_pool.drivers.docker import DockerDriver
from agent_pool.drivers.docker_engine import Engine
from agent_pool.drivers.slots import Slots
from agent_pool.drivers.worker_process import WorkerProcess
from agent_pool.images.container import ContainerImages
from agent_pool.logs import LogStore
from agent_pool.secrets.vault import Vault
from tests import engine as engines
from tests.agent_pool.harness import generate
from tests.agent_worker import templates
from tests.waiting import eventually

# The first to need it waits for the engine, its base image and the first agent's image.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
DIGEST = "sha256:" + "d0c4e2" * 10 + "d0c4"
AGENT = """
import json, os, sys, time
from pathlib import Path
from agentruntime import Agent

if os.environ.get("FAIL") == "import":
    raise RuntimeError("no luck today")
if os.environ.get("FAIL") == "hang":
    time.sleep(3600)
if os.environ.get("FAIL") == "hard":
    print("gone", file=sys.stderr, flush=True)
    os._exit(7)

class Tester(Agent):
    def start(self):
        print("it starts", os.environ.get("WHO"))
        if os.environ.get("FAIL") == "start":
            raise ValueError("cannot start")

    def generate(self, prompt, *, temperature, max_tokens):
        if prompt == "eat":
            eaten = []
            while True:
                eaten.append(b"x" * 2**24)
        if prompt == "exit":
            os._exit(3)
        if prompt == "look":
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            return json.dumps({
                "uid": os.getuid(), "gid": os.getgid(), "caps": status["CapEff"].strip(),
                "bounding": status["CapBnd"].strip(), "no_new_privs": status["NoNewPrivs"].strip(),
                "seccomp": status["Seccomp"].strip(), "interfaces": sorted(os.listdir("/sys/class/net")),
                "writable": [d for d in ("/", "/agent", "/tmp", "/dev/shm", "/run/agent") if os.access(d, os.W_OK)],
                "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            })
        return prompt.upper()
"""


@dataclass(frozen=True)
class MadeImage:
    """The image of AGENT, made already."""

    image: str

    async def ensure(self, digest: str, bundle: Path, base_image: str, progress: Callable[[str], None]) -> str:
        return self.image


@pytest.fixture(scope="module")
def image(engine: engines.Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The id of the container image of AGENT."""
    bundle = templates.write_bundle(tmp_path_factory.mktemp("bundle") / "b", tester=AGENT)
    (bundle / "app" / "agent.yaml").write_text("name: tester\nversion: 1.0.0\nentrypoint: tester:Tester\n")
    with contextlib.closing(engine.client()) as client:
        images = ContainerImages(client, engine.base_image)
        try:
            yield asyncio.run(images.ensure(DIGEST, bundle, "", lambda _: None))
        finally:
            asyncio.run(images.remove(DIGEST))


@dataclass
class Stage:
    """A driver, and the engine that it uses."""

    home: Home
    driver: DockerDriver
    engine: engines.Engine
    image: str

    def another(self) -> DockerDriver:
        """As of a pool that takes over."""
        return _driver(self.home, self.engine, self.image)

    def containers(self) -> list[str]:
        """Names of all that are there of this pool, running or not."""
        with contextlib.closing(self.engine.client()) as client:
            found = client.containers.list(all=True, filters={"label": f"dev.agentruntime.pool={self.driver._pool}"})
            return [str(each.id) for each in found]

    def directories(self) -> list[Path]:
        return list((self.home.run / "c").rglob("*"))


def _driver(home: Home, engine: engines.Engine, image: str) -> DockerDriver:
    logs, vault = LogStore(home.logs), Vault(home.state, home.secrets_key)
    return DockerDriver(home, logs, Engine(engine.address), lambda _: MadeImage(image), Slots(), vault=vault)


@pytest.fixture
async def stage(engine: engines.Engine, image: str, short_directory: Path) -> AsyncIterator[Stage]:
    home = Home(short_directory)
    home.create()
    made = Stage(home, _driver(home, engine, image), engine, image)
    yield made
    await made.driver.close()
    assert (made.containers(), made.directories()) == ([], [])


def launch(key: str = "tester-01", *, env: Mapping[str, str] | None = None, **fields: object) -> Launch:
    revision = Revision(
        key="tester@1", agent="tester", number=1, image_digest=DIGEST, bundle="", entrypoint="tester:Tester",
        services=(), env=env or {}, log_level="INFO", venv="", host_network=False, agent_index=900,
        limits=Limits(memory_bytes=150_000_000, cpu_millis=1000, pids=64), wants_gpus=False, concurrency=4,
        default_timeout_s=30.0, start_timeout_s=60.0, mode="container",
    )  # fmt: skip
    return Launch(key, key, replace(revision, **fields))  # type: ignore[arg-type]  # fields of the revision


async def test_a_container_serves_without_a_network_and_ends_as_it_is_asked_to(stage: Stage) -> None:
    driver = stage.driver
    prepared = await driver.prepare(launch().revision)
    assert prepared.services == ("uapi.v1.TextGenerationService",)
    assert b"TextGenerationService" in prepared.descriptors
    running = await driver.start(launch(env={"WHO": "you"}))
    found = json.loads(await generate(running.address, "look"))
    uid = slots.uid(900, 1)
    assert found == {
        "uid": uid, "gid": uid, "caps": "0" * 16, "bounding": "0" * 16, "no_new_privs": "1", "seccomp": "2",
        "interfaces": ["lo"], "writable": ["/tmp", "/dev/shm"], "gpus": "",
    }  # fmt: skip
    stats = driver.stats("tester-01")
    assert stats.cpu_s > 0
    assert stats.memory_bytes > 10**7
    assert stats.pids > 1
    assert "it starts you" in (stage.home.logs / "agents" / "tester" / "tester-01.log").read_text()
    with contextlib.closing(stage.engine.client()) as client:
        container = client.containers.get(running.handle["container"])
        assert container.labels["dev.agentruntime.worker"] == "tester-01"
        await driver.limit("tester-01", Limits(memory_bytes=200_000_000, cpu_millis=None, pids=32))
        container.reload()
        host = container.attrs["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"], host["CpuQuota"]) == (2 * 10**8, 2 * 10**8, 32, -1)
    with pytest.raises(errors.FailedPrecondition, match="are in use, more than the new limit of 10MB"):
        await driver.limit("tester-01", Limits(memory_bytes=10_000_000))
    ended = await driver.stop("tester-01", 10.0)
    assert (ended.reason, ended.status) == ("exit status 0", 0)
    await driver.destroy("tester-01")


async def test_restricted_and_writable_where_that_is_asked_for(stage: Stage) -> None:
    running = await stage.driver.start(launch(restricted=True, read_only_root=False))
    found = json.loads(await generate(running.address, "look"))
    assert found["seccomp"] == "2"
    assert await generate(running.address, "hello") == "HELLO"


@pytest.mark.parametrize(
    ("prompt", "reason", "status"), [("eat", "OOM-killed at 150MB", -9), ("exit", "exit status 3", 3)]
)
async def test_how_a_worker_ended(stage: Stage, prompt: str, reason: str, status: int) -> None:
    running = await stage.driver.start(launch())
    with pytest.raises(aio.AioRpcError) as failure:
        await generate(running.address, prompt, 60)
    assert failure.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
    ended = await asyncio.wait_for(stage.driver.wait("tester-01"), 30)
    assert (ended.reason, ended.status) == (reason, status)
    assert reason in (stage.home.logs / "agents" / "tester" / "tester-01.log").read_text()


async def test_what_fails_leaves_nothing(stage: Stage) -> None:
    driver = stage.driver
    for fail, says in (("import", "RuntimeError: no luck today"), ("hard", "exit status 7:\ngone")):
        with pytest.raises(errors.AgentFailed, match=says):
            await driver.prepare(launch(env={"FAIL": fail}).revision)
        assert (stage.containers(), stage.directories()) == ([], [])
    with pytest.raises(errors.AgentFailed, match="took longer than 2s and was ended"):
        await driver.prepare(launch(env={"FAIL": "hang"}, start_timeout_s=2.0).revision)
    assert (stage.containers(), stage.directories()) == ([], [])
    await driver.prepare(launch().revision)
    for fail, says in (("start", "(?s)cannot start.*Traceback"), ("hard", "(?s)exit status 7.*gone")):
        with pytest.raises(errors.AgentFailed, match=says):
            await driver.start(launch(env={"FAIL": fail}))
        await driver.destroy("tester-01")
        assert (stage.containers(), stage.directories()) == ([], [])


async def test_an_image_with_a_volume_is_refused(stage: Stage) -> None:
    with contextlib.closing(stage.engine.client()) as client:
        container = client.containers.create(stage.image)
        volatile = container.commit(changes=["VOLUME /data"])
        container.remove()
        try:
            driver = _driver(stage.home, stage.engine, str(volatile.id))
            with pytest.raises(errors.FailedPrecondition, match=r"has volumes \(/data\)"):
                await driver.prepare(launch().revision)
            await driver.close()
        finally:
            client.images.remove(str(volatile.id))


async def test_gpus_that_the_engine_cannot_give_leave_nothing(stage: Stage) -> None:
    with pytest.raises(errors.FailedPrecondition, match="NVIDIA Container Toolkit"):
        await stage.driver.start(replace(launch(wants_gpus=True), gpus=(0,)))
    assert stage.containers() == []
    await stage.driver.destroy("tester-01")
    assert stage.directories() == []


async def test_a_start_that_is_given_up_leaves_nothing(stage: Stage) -> None:
    await stage.driver.prepare(launch().revision)
    starting = asyncio.create_task(stage.driver.start(launch()))
    await eventually(stage.directories)
    starting.cancel()
    await asyncio.wait([starting])
    await stage.driver.destroy("tester-01")
    assert (stage.containers(), stage.directories()) == ([], [])


async def test_a_pool_that_takes_over_adopts_its_own_and_removes_the_others(stage: Stage) -> None:
    kept: Running = await stage.driver.start(launch("tester-01"))
    await stage.driver.start(launch("tester-02"))
    heir = stage.another()
    adopted = await heir.recover({}, {"tester-01": launch("tester-01")}, {"tester-01": kept.handle})
    assert adopted == [kept]
    assert stage.containers() == [kept.handle["container"]]
    assert await generate(kept.address, "still here") == "STILL HERE"
    with pytest.raises(errors.FailedPrecondition, match="agent restart tester-01"):
        await heir.debug("tester-01")
    ended = await heir.stop("tester-01", 10.0)
    assert ended.reason == "exit status 0"
    await heir.close()
    assert (stage.containers(), stage.directories()) == ([], [])


async def test_a_pool_whose_engine_comes_late_removes_the_others_before_its_first_start(stage: Stage) -> None:
    await stage.driver.start(launch("tester-01"))
    left = stage.containers()
    door = stage.home.root / "engine"
    heir = DockerDriver(
        stage.home,
        LogStore(stage.home.logs),
        Engine(f"unix://{door}"),
        lambda _: MadeImage(stage.image),
        Slots(),
        vault=Vault(stage.home.state, stage.home.secrets_key),
    )
    assert await heir.recover({}, {}, {}) == []
    assert stage.containers() == left
    door.symlink_to(stage.engine.address.removeprefix("unix://"))
    running = await heir.start(launch("tester-02"))
    assert stage.containers() == [running.handle["container"]]
    assert await generate(running.address, "hello") == "HELLO"
    await heir.close()


async def test_a_log_that_cannot_be_opened_leaves_no_secrets_open(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    vault = Vault(home.state, home.secrets_key)
    await vault.put("openai", b"sk-0123456789", ["tester"])
    logs = LogStore(home.logs)
    engine = Engine(f"unix://{tmp_path}/none.sock")
    driver = DockerDriver(home, logs, engine, lambda _: MadeImage(""), Slots(), vault=vault)
    process = WorkerProcess(launch(secrets=("openai",)), 1, None, tmp_path, 0)
    in_the_way = logs.path("tester", "x").parent
    in_the_way.parent.mkdir(parents=True, exist_ok=True)
    in_the_way.touch()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(OSError, match="File exists"):
            await driver._tell_who(process, ours)
        assert not [each for each in list(Path("/proc/self/fd").iterdir()) if "memfd" in os.path.realpath(each)]
    await driver.close()
