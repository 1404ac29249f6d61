"""Container images: made in a real engine, the same layers again, run by it without us, and taken out of it."""

import contextlib
import io
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import docker.errors
import grpc
import pytest
from agentruntime import errors
from agentruntime.home import Home
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent_pool.images import project, recipe
from agent_pool.images.catalog import Catalog
from agent_pool.images.container import ContainerImages
from tests.agent_pool import harness
from tests.engine import Engine

# pip takes its time on a loaded machine.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture
def client(engine: Engine) -> Iterator[docker.DockerClient]:
    with contextlib.closing(engine.client()) as client:
        yield client


@pytest.fixture
def catalog_in(client: docker.DockerClient, engine: Engine) -> Callable[[Path], Catalog]:
    containers = ContainerImages(client, engine.base_image)

    async def engine_images() -> ContainerImages:
        return containers

    def make(directory: Path) -> Catalog:
        home = Home(directory)
        for part in (home.images, home.bundles, home.state):
            part.mkdir(parents=True)
        # No built-in images.
        (home.images / "blobs" / "sha256").mkdir(parents=True)
        (home.images / "index.json").write_text('{"manifests": []}')
        return Catalog(home, [], set, engine_images, engine.base_image)

    return make


def found(client: docker.DockerClient, digest: str) -> list[str]:
    label = f"{recipe.AGENT_IMAGE_LABEL}={digest}"
    return [str(image.id) for image in client.images.list(filters={"label": label})]


async def test_an_agent_s_container_image(
    client: docker.DockerClient, catalog_in: Callable[[Path], Catalog], tmp_path: Path
) -> None:
    here, elsewhere = catalog_in(tmp_path / "here"), catalog_in(tmp_path / "elsewhere")
    name = "uapi-tests-made:1.0.0"
    # Its own time in it: nobody else's test makes the same.
    image = await here.build(io.BytesIO(harness.project("uapi-tests-made", before=f"# {tmp_path}")), name, print)
    said: list[str] = []
    try:
        made = await here.make_container_image(name, said.append)
        assert any(line.startswith("Step 2/") for line in said)
        assert await here.make_container_image(name, said.append) == made
        assert (await here.container_images())[image.digest] == made
        config = client.images.get(made).attrs["Config"]
        assert config["User"] == "65534:65534"
        assert config["ExposedPorts"] == {"50051/tcp": {}}
        assert name in client.images.get(made).tags
        _check_health(client, made)

        # As `agent run` finds it on a machine whose store has it no more: by its name, or by its digest.
        assert await elsewhere.obtain(name) == "docker"
        assert elsewhere.find(name).digest == image.digest
        pinned = f"uapi-tests-made@{image.digest}"
        await here.tag(name, "uapi-tests-other:1")
        with pytest.raises(errors.ImageNotFound):
            await elsewhere.obtain("uapi-tests-other:1")
        fresh = catalog_in(tmp_path / "fresh")
        assert await fresh.obtain(pinned) == "docker"
        assert fresh.find(pinned).digest == image.digest

        await here.remove(name)
        assert found(client, image.digest) == [made]  # another name is left
        await here.remove("uapi-tests-other:1")
        assert found(client, image.digest) == []
    finally:
        await ContainerImages(client, "").remove(image.digest)


def _check_health(client: docker.DockerClient, image: str) -> None:
    """By plain `docker run`: health over TCP."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    container = client.containers.run(image, detach=True, network_mode="host", environment={"PORT": str(port)})
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=60, wait_for_ready=True)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    finally:
        said = container.logs().decode()
        container.remove(force=True)
        print(said)


@pytest.fixture
def few_packages(client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One package for every worker, so that an image is quickly made; and nothing left of builds that failed."""
    monkeypatch.setattr(recipe, "WORKER_PACKAGES", ("typing-extensions",))
    monkeypatch.setattr(recipe, "DEBUGGER", "no_such_debugger")
    yield
    mark = '"--no-deps", "typing-extensions=='
    for image in client.images.list(filters={"dangling": True}):
        with contextlib.suppress(docker.errors.NotFound):
            if any(mark in str(layer.get("CreatedBy")) for layer in image.history()):
                client.images.remove(str(image.id))


def bundle(directory: Path, manifest: str) -> Path:
    (directory / "app").mkdir(parents=True)
    project.extract(io.BytesIO(harness.project("uapi-tests-few", manifest=manifest)), directory / "app")
    return directory


@pytest.mark.usefixtures("few_packages")
async def test_the_same_layers_again(client: docker.DockerClient, engine: Engine, tmp_path: Path) -> None:
    images = ContainerImages(client, engine.base_image)
    digest = "sha256:" + "5a" * 32
    of = bundle(tmp_path / "bundle", "")
    layers = []
    for _ in range(2):
        try:
            made = await images.ensure(digest, of, "", print)
            layers.append(client.images.get(made).attrs["RootFS"]["Layers"])
        finally:
            # With all that the engine would have of it for the next time.
            await images.remove(digest)
    assert layers[0] == layers[1]


@pytest.mark.usefixtures("few_packages")
async def test_what_cannot_be_made(client: docker.DockerClient, engine: Engine, tmp_path: Path) -> None:
    images = ContainerImages(client, engine.base_image)
    plain = bundle(tmp_path / "plain", "")
    with pytest.raises(errors.FailedPrecondition, match="no base image uapi-tests/none:1 and cannot pull it"):
        await images.ensure("sha256:" + "5b" * 32, plain, "uapi-tests/none:1", print)
    wanting = bundle(tmp_path / "wanting", "python: {requirements: [uapi-tests-none==1]}\n")
    with pytest.raises(errors.FailedPrecondition, match="No matching distribution found for uapi-tests-none==1"):
        await images.ensure("sha256:" + "5c" * 32, wanting, "", print)
    assert not (await images.made()).keys() & {"sha256:" + "5b" * 32, "sha256:" + "5c" * 32}
