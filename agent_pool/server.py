"""Puts the pool together, serves it on its Unix socket, and takes it apart again."""

import asyncio
import functools
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agentruntime import log
from agentruntime._proto.uapi.v1 import (
    agent_pool_pb2,
    agent_pool_pb2_grpc,
    image_service_pb2,
    image_service_pb2_grpc,
    secret_service_pb2,
    secret_service_pb2_grpc,
)
from agentruntime.home import Home
from agentruntime.interceptors import ServerInterceptor
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from agent_pool import machine, remote
from agent_pool.cgroups import detect
from agent_pool.cgroups.base import Hierarchy
from agent_pool.drivers.by_mode import DriversByMode
from agent_pool.drivers.docker import DockerDriver
from agent_pool.drivers.docker_engine import Engine
from agent_pool.drivers.process import ProcessDriver
from agent_pool.drivers.slots import Slots
from agent_pool.image_service import ImageStoreService
from agent_pool.images.catalog import Catalog
from agent_pool.images.trust import Trust
from agent_pool.ledger import Ledger
from agent_pool.logs import LogStore
from agent_pool.logs import housekeeping as log_housekeeping
from agent_pool.logs.shipping import Shipping
from agent_pool.pool import Pool
from agent_pool.scaling.autoscale import Autoscaler
from agent_pool.secret_service import SecretStoreService
from agent_pool.secrets.vault import Vault
from agent_pool.service import AgentPoolService
from agent_pool.settings import PoolSettings
from agent_pool.state import StateStore

if TYPE_CHECKING:
    import docker

    from agent_pool.images.container import ContainerImages

_LARGEST_MESSAGE_BYTES = 4 * 2**20
_CALLS_GRACE_S = 1.0
_log = log.get("agent_pool.server")


async def serve(home: Home, settings: PoolSettings) -> None:
    """Runs the pool of a runtime directory until SIGTERM or SIGINT.

    Raises:
        FailedPrecondition: another pool has that directory; or images are to be signed, and there are no keys.
        DataLoss: its state cannot be read.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    trust = Trust(settings.trusted_keys, required=settings.require_signed)
    trust.check()
    home.create()
    state = StateStore(home.state / "pool")
    mounts = detect.here()
    ledger = Ledger(machine.capacity(mounts))
    vault = Vault(home.state / "pool", Path(settings.secrets_key_file or home.secrets_key))
    logs = LogStore(home.logs, lambda agent: pool.log_policy(agent), vault.redactor)  # noqa: PLW0108 — each needs the other
    engine = Engine(settings.docker_host)
    # One for each client, of which there is one: two images are not built at a time.
    container_images = functools.cache(functools.partial(_container_images, settings))

    async def containers() -> "ContainerImages":
        return container_images(await engine.connect())

    hierarchy = _prepared(detect.hierarchy(mounts, home.root))
    driver = _drivers(
        home, logs, settings, vault, hierarchy=hierarchy, engine=engine, container_images=container_images
    )
    catalog = Catalog(
        home,
        [sys.executable, "-m", "pip"],
        lambda: pool.digests_in_use(),  # noqa: PLW0108 — each needs the other
        containers,
        settings.base_image,
        trust=trust,
    )
    pool = Pool(settings, driver, ledger, catalog, state, vault=vault)
    await catalog.prepare()
    await pool.recover()
    services = AgentPoolService(pool, logs), ImageStoreService(pool, catalog), SecretStoreService(pool)
    server = await _listen(home, settings, *services)
    shipping = Shipping(logs, home.logs / "sent", pool.note_logs)
    autoscaler = Autoscaler(pool, settings.scale_windows, settings.backoff)
    chores = [
        asyncio.create_task(autoscaler.run(settings.scale_interval_s)),
        asyncio.create_task(_keep_house(pool, settings.housekeeping_interval_s)),
        asyncio.create_task(log_housekeeping.keep(logs)),
        asyncio.create_task(shipping.run()),
    ]
    _log.info("pool serves", address=f"unix:{home.pool_socket}", capacity=vars(ledger.capacity))
    await stopped.wait()
    _log.info("pool stops")
    for chore in chores:
        chore.cancel()
    # Waited for, not awaited: what went wrong there must not keep the workers from being stopped.
    await asyncio.wait(chores)
    closing = asyncio.create_task(pool.close(settings.stop_grace_s))
    await closing
    await server.stop(_CALLS_GRACE_S)
    home.pool_socket.unlink(missing_ok=True)


def _drivers(
    home: Home,
    logs: LogStore,
    settings: PoolSettings,
    vault: Vault,
    *,
    hierarchy: Hierarchy | None,
    engine: Engine,
    container_images: "Callable[[docker.DockerClient], ContainerImages]",
) -> DriversByMode:
    slots = Slots()
    native = ProcessDriver(home, logs, hierarchy, settings.worker_environment, vault=vault, slots=slots)
    container = DockerDriver(home, logs, engine, container_images, slots, vault=vault)
    return DriversByMode(native, container, settings.mode)


def _container_images(settings: PoolSettings, client: "docker.DockerClient") -> "ContainerImages":
    from agent_pool.images.container import ContainerImages  # noqa: PLC0415 — it imports the engine's package

    return ContainerImages(client, settings.base_image)


def _prepared(hierarchy: Hierarchy | None) -> Hierarchy | None:
    """The hierarchy, ready for use; None, as where there is none, if the kernel does not let us."""
    if hierarchy is not None:
        try:
            hierarchy.prepare()
        except OSError as error:
            # Every deployment's notes, and GetNode, say then that nothing is capped.
            _log.error("control groups cannot be used", hierarchy=hierarchy.name, error=str(error))
            return None
    return hierarchy


async def _listen(
    home: Home,
    settings: PoolSettings,
    agents: AgentPoolService,
    images: ImageStoreService,
    secrets: SecretStoreService,
) -> aio.Server:
    server = aio.server(
        interceptors=[ServerInterceptor(remote.only_the_gateway)],
        options=(("grpc.max_receive_message_length", _LARGEST_MESSAGE_BYTES),),
    )
    agent_pool_pb2_grpc.add_AgentPoolServicer_to_server(agents, server)
    image_service_pb2_grpc.add_ImageServiceServicer_to_server(images, server)
    secret_service_pb2_grpc.add_SecretServiceServicer_to_server(secrets, server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = [
        *agent_pool_pb2.DESCRIPTOR.services_by_name.values(),
        *image_service_pb2.DESCRIPTOR.services_by_name.values(),
        *secret_service_pb2.DESCRIPTOR.services_by_name.values(),
    ]
    for name in ("", *(service.full_name for service in names)):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    # The lock on the state says that whoever listened here before is gone.
    home.pool_socket.unlink(missing_ok=True)
    server.add_insecure_port(f"unix:{home.pool_socket}")
    if settings.listen:
        remote.listen(server, home, settings)
    await server.start()
    home.pool_socket.chmod(0o600)
    return server


async def _keep_house(pool: Pool, interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        try:
            await asyncio.to_thread(pool.sample_usage)
        except Exception as error:
            # A full disk, or a worker that leaves while it is measured; the next round tries again.
            _log.error("housekeeping failed", exc_info=error)
