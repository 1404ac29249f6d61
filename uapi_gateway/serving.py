"""What the gateway's parts serve, and on which sockets."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from agentruntime._proto.uapi.v1 import (
    access_pb2_grpc,
    agent_gateway_pb2_grpc,
    agent_registry_pb2_grpc,
    audit_pb2_grpc,
)
from agentruntime.intake import IntakeInterceptor
from agentruntime.interceptors import ServerInterceptor
from agentruntime.launch import SYSTEM_CALLS
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.load_stats.v3 import lrs_pb2_grpc
from grpc import aio
from grpc_health.v1 import health_pb2_grpc

from uapi_gateway import inner, sockets
from uapi_gateway.a2a.entrance import A2AHandler
from uapi_gateway.access.guard import Guard
from uapi_gateway.access.operators import PoolHandler
from uapi_gateway.access.service import AccessService
from uapi_gateway.access.shares import Shares
from uapi_gateway.fallback import FallbackHandler
from uapi_gateway.health_service import HealthService
from uapi_gateway.http import app, entrance
from uapi_gateway.http.guard import Door
from uapi_gateway.http.openai import entrance as openai
from uapi_gateway.kernel import doors, system_calls
from uapi_gateway.kernel.audit_service import AuditService
from uapi_gateway.kernel.carrying import Carrier
from uapi_gateway.kernel.models import ModelService
from uapi_gateway.parts import Parts
from uapi_gateway.reflection import ReflectionService
from uapi_gateway.relay import LONGEST_REQUEST_BYTES, RelayHandler

_GRACE_S = 1.0
# Of requests to the gateway's own services, at a time.
_HELD_BYTES = 64 * 2**20


def discovery(parts: Parts) -> AbstractAsyncContextManager[None]:
    """What Envoy asks."""
    server = aio.server(options=[("grpc.max_receive_message_length", -1)])
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(parts.discovery, server)
    lrs_pb2_grpc.add_LoadReportingServiceServicer_to_server(parts.load_service, server)
    return _serving(server, sockets.xds_socket(parts.settings.home))


def relay(parts: Parts) -> AbstractAsyncContextManager[None]:
    """What carries calls that have to wait."""
    server = aio.server(
        interceptors=[ServerInterceptor()], options=[("grpc.max_receive_message_length", LONGEST_REQUEST_BYTES)]
    )
    server.add_generic_rpc_handlers((RelayHandler(parts.carrier),))
    return _serving(server, sockets.relay_socket(parts.settings.home))


def control(parts: Parts) -> AbstractAsyncContextManager[None]:
    """The gateway's own services, and all that no agent's route takes."""
    registry, checks = parts.registry, parts.checks
    interceptors = [ServerInterceptor(), Shares(parts.in_flight), IntakeInterceptor(_HELD_BYTES), Guard(checks)]
    server = aio.server(interceptors=interceptors)
    agent_gateway_pb2_grpc.add_AgentGatewayServicer_to_server(parts.service, server)
    agent_registry_pb2_grpc.add_AgentRegistryServicer_to_server(parts.registrar, server)
    health_pb2_grpc.add_HealthServicer_to_server(
        HealthService(registry, lambda: parts.watch.synced, checks.callable_by), server
    )
    audit_pb2_grpc.add_AuditServiceServicer_to_server(AuditService(parts.audit), server)
    access = AccessService(parts.book, parts.discovery.guarded, parts.identity)
    access_pb2_grpc.add_AccessServiceServicer_to_server(access, server)
    parts.conversations.add_to(server, checks, parts.audit)
    server.add_generic_rpc_handlers(
        (
            *ReflectionService(registry, checks.callable_by).handlers(),
            PoolHandler(parts.pool, parts.discovery.routed, checks, lambda: parts.book.policy),
            A2AHandler(parts.a2a, checks),
            FallbackHandler(registry, checks.callable_by),
        )
    )
    return _serving(server, parts.settings.home.control_socket)


@contextlib.asynccontextmanager
async def kernel(parts: Parts) -> AsyncIterator[None]:
    """What answers system calls."""
    home, registry, audit = parts.settings.home, parts.registry, parts.audit
    async with inner.channel(home) as agents:
        models = ModelService(registry, audit, pool=parts.pool, agents=agents, routed=parts.discovery.routed)
        async with _serving(system_calls.server(registry, audit, models), sockets.kernel_socket(home)):
            yield


def system_call_doors(parts: Parts) -> AbstractAsyncContextManager[None]:
    """Where workers make system calls."""
    home = parts.settings.home
    carrier = Carrier(sockets.system_calls_socket(home))
    return doors.Door(home, parts.registry, SYSTEM_CALLS, carrier.carry).open()


@contextlib.asynccontextmanager
async def http(parts: Parts) -> AsyncIterator[None]:
    """Uvicorn, with the pages and the APIs over HTTP."""
    settings = parts.settings
    guarded = Door(parts.ports.http, tls=settings.serves_tls, open=not settings.local)
    core = parts.http_core
    routes = [*parts.a2a.routes(), *openai.routes(core), *entrance.routes(core)]
    server = app.server(parts.observer, guarded, parts.in_flight, routes)
    path = sockets.http_socket(settings.home)
    with _cleared(path), contextlib.closing(sockets.bind_unix(path)) as bound:
        task = asyncio.create_task(server.serve(sockets=[bound]))
        try:
            yield
        finally:
            server.end()
            await task


@contextlib.asynccontextmanager
async def _serving(server: aio.Server, path: Path) -> AsyncIterator[None]:
    """A gRPC server on a Unix socket."""
    with _cleared(path):
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        try:
            yield
        finally:
            await server.stop(_GRACE_S)


@contextlib.contextmanager
def _cleared(path: Path) -> Iterator[None]:
    """A socket that an earlier gateway may have left behind is gone before and after."""
    path.unlink(missing_ok=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
