"""AgentRegistry: how agents from outside join, stay and leave, and how anyone sees who is there."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from agentruntime import log, names
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as proto
from agentruntime._proto.uapi.v1 import agent_registry_pb2_grpc
from agentruntime.errors import DiskFull, FailedPrecondition, InvalidArgument
from google.protobuf import duration_pb2
from grpc import aio

from uapi_gateway import descriptors, probing
from uapi_gateway.access.callers import principal_of
from uapi_gateway.access.keys import LOCAL
from uapi_gateway.outward import Outward
from uapi_gateway.registry import Agent, Endpoint, Registry
from uapi_gateway.sockets import TLS_SCHEME, split_endpoint
from uapi_gateway.store import Store

_log = log.get("uapi_gateway.registry_service")
_TTL_S = 30.0
_SHORTEST_TTL_S = 1.0
_LONGEST_TTL_S = 3600.0
_EXPIRY_TICK_S = 0.25
# While there is none to expire.
_NO_LEASE_S = 1.0
_MOST_SERVICES = 100
_LONGEST_CAPABILITY = 200
# Together, with both versions of reflection, the 5 seconds that agent_registry.proto promises.
_PROBE_S = 3.0
_REFLECTION_S = 1.0


def lease_ttl(request: proto.RegisterAgentRequest) -> float:
    """Seconds that a registration asks for.

    Raises:
        InvalidArgument: it is not from 1 second to 1 hour.
    """
    if not request.HasField("lease_ttl"):
        return _TTL_S
    ttl_s = request.lease_ttl.seconds + request.lease_ttl.nanos / 1e9
    if not _SHORTEST_TTL_S <= ttl_s <= _LONGEST_TTL_S:
        raise InvalidArgument(f"a lease of {ttl_s:g} s is not possible; ask for 1 second to 1 hour")
    return ttl_s


def resolve_services(services: list[str], known: set[str]) -> list[str]:
    """Full names of the services in a registration.

    Args:
        services: as the agent wrote them.
        known: full names that the gateway knows.

    Raises:
        InvalidArgument: none is given, one is not a name, or a short name is unknown or means several.
    """
    if not services:
        raise InvalidArgument("a registration names at least one service")
    if len(services) > _MOST_SERVICES:
        raise InvalidArgument(f"a registration names at most {_MOST_SERVICES} services")
    full = []
    for name in services:
        if not all(part.isidentifier() and part.isascii() for part in name.split(".")):
            raise InvalidArgument(
                f"'{name[:_LONGEST_CAPABILITY]}' is not the name of a service, like acme.v1.Greeter"
            )
        found = descriptors.full_names(name, known)
        if "." not in name and len(found) != 1:
            why = f"can mean {' or '.join(found)}" if found else "is known to nobody here"
            raise InvalidArgument(f"service '{name}' {why}; write its full name, like acme.v1.{name}")
        if (resolved := found[0] if found else name) in descriptors.PLATFORM:
            raise InvalidArgument(f"service '{name}' is the platform's own; an agent cannot register it")
        full.append(resolved)
    return list(dict.fromkeys(full))


class RegistryService(agent_registry_pb2_grpc.AgentRegistryServicer):
    """The service, and the loop that ends leases."""

    def __init__(self, registry: Registry, store: Store, outward: Outward, *, is_own: Callable[[str], bool]) -> None:
        """`is_own` says whether an address ("ip:port", "unix:/path") is the platform's own: a call there would
        circle, or anyone's calls would reach what is the operator's."""
        self._registry = registry
        self._store = store
        self._outward = outward
        self._is_own = is_own

    async def RegisterAgent(
        self, request: proto.RegisterAgentRequest, context: aio.ServicerContext[Any, Any]
    ) -> proto.RegisterAgentResponse:
        registration = request.registration
        ttl_s = lease_ttl(request)
        names.check_agent_name(registration.agent_id)
        split_endpoint(registration.endpoint)
        if registration.health_check:
            probing.check_health_url(registration.health_check)
        if any(len(capability) > _LONGEST_CAPABILITY for capability in registration.capabilities):
            raise InvalidArgument(f"a capability has at most {_LONGEST_CAPABILITY} characters")
        services = resolve_services(list(registration.services), self._known_services())
        far = principal_of(context.invocation_metadata()) != LOCAL
        if far:
            await probing.check_far(registration.endpoint, registration.health_check)
        finding = await probing.probe(registration.endpoint, registration.health_check, self._outward, _PROBE_S)
        if far and finding.healthy:
            # Its name may stand for another address by now.
            await probing.check_far(finding.resolved, "")
        if not finding.healthy:
            raise FailedPrecondition(f"agent '{registration.agent_id}' does not answer: {finding.reason}")
        if self._is_own(finding.resolved.removeprefix(TLS_SCHEME)):
            raise FailedPrecondition(
                f"{registration.endpoint} is the platform's own address; register the one where the agent serves"
            )
        entered = self._registry.register(
            Agent(
                agent_id=registration.agent_id,
                services=tuple(services),
                endpoints=(Endpoint(registration.endpoint, ready=True, resolved=finding.resolved),),
                capabilities=tuple(registration.capabilities),
                descriptors=await self._descriptors(registration.endpoint, finding.resolved, services),
                health_check=registration.health_check,
            ),
            ttl_s,
            time.time(),
        )
        await self._store.save_registered(entered)
        assert entered.lease is not None
        _log.info("agent registered", agent=entered.agent_id, endpoint=registration.endpoint)
        return proto.RegisterAgentResponse(
            lease_id=entered.lease.lease_id, lease_ttl=_duration(ttl_s), agent=entered.info()
        )

    async def KeepAlive(
        self, request: proto.KeepAliveRequest, context: aio.ServicerContext[Any, Any]
    ) -> proto.KeepAliveResponse:
        lease = self._registry.keep_alive(request.lease_id, time.time())
        return proto.KeepAliveResponse(lease_ttl=_duration(lease.ttl_s))

    async def DeregisterAgent(
        self, request: proto.DeregisterAgentRequest, context: aio.ServicerContext[Any, Any]
    ) -> proto.DeregisterAgentResponse:
        if self._registry.deregister(request.agent_id):
            await self._store.remove_registered(request.agent_id)
            _log.info("agent deregistered", agent=request.agent_id)
        return proto.DeregisterAgentResponse()

    async def GetAgent(
        self, request: proto.GetAgentRequest, context: aio.ServicerContext[Any, Any]
    ) -> proto.GetAgentResponse:
        return proto.GetAgentResponse(agent=self._registry.require(request.agent_id).agent.info())

    async def ListAgents(
        self, request: proto.ListAgentsRequest, context: aio.ServicerContext[Any, Any]
    ) -> proto.ListAgentsResponse:
        return proto.ListAgentsResponse(agents=[agent.info() for agent in self._registry.agents()])

    async def WatchAgents(
        self, request: proto.WatchAgentsRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[proto.WatchAgentsResponse]:
        # Names, not states: a slow caller gets the latest of each, and the set cannot grow beyond the agents.
        touched: dict[str, None] = {}
        due = asyncio.Event()

        def changed(agent_id: str) -> None:
            touched[agent_id] = None
            due.set()

        self._registry.listeners.append(changed)
        try:
            for agent in self._registry.agents():
                yield proto.WatchAgentsResponse(changed=agent.info())
            yield proto.WatchAgentsResponse(synced=True)
            while True:
                await due.wait()
                due.clear()
                while touched:
                    agent_id = next(iter(touched))
                    del touched[agent_id]
                    now = self._registry.get(agent_id)
                    if now is None:
                        yield proto.WatchAgentsResponse(removed=agent_id)
                    else:
                        yield proto.WatchAgentsResponse(changed=now.info())
        finally:
            self._registry.listeners.remove(changed)

    async def expire_leases(self) -> None:
        """Takes out agents whose lease has run out, until cancelled."""
        while True:
            await asyncio.sleep(_EXPIRY_TICK_S if self._registry.registered() else _NO_LEASE_S)
            for agent_id in self._registry.expire(time.time()):
                _log.warning("the lease of an agent ran out", agent=agent_id)
                try:
                    await self._store.remove_registered(agent_id)
                except (sqlite3.Error, DiskFull) as error:
                    # A later gateway restores it with a fresh lease, which runs out in its turn.
                    _log.error("an agent could not be struck off", agent=agent_id, error=str(error))

    def _known_services(self) -> set[str]:
        known = {service for agent in self._registry.agents() for service in agent.services}
        return known | set(descriptors.services_of(descriptors.platform_set()))

    async def _descriptors(self, endpoint: str, resolved: str, services: list[str]) -> bytes:
        builtin = set(descriptors.services_of(descriptors.platform_set()))
        if not set(services) - builtin:
            return descriptors.platform_subset(services)
        found = await probing.reflected(endpoint, resolved, services, self._outward, _REFLECTION_S)
        return found or descriptors.platform_subset(services)


class HealthLoop:
    """Asks the registered agents again and again; one that fails several times in a row gets no calls."""

    def __init__(self, registry: Registry, outward: Outward, *, interval_s: float, failures: int) -> None:
        self._registry = registry
        self._outward = outward
        self._interval_s = interval_s
        self._most_failures = failures

    async def run(self) -> None:
        """Checks until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            await asyncio.gather(*(self.check(agent) for agent in self._registry.registered()))

    async def check(self, agent: Agent) -> None:
        """Checks one agent, and enters what it finds unless the agent has registered anew meanwhile."""
        (endpoint,) = agent.endpoints
        try:
            finding = await probing.probe(endpoint.address, agent.health_check, self._outward)
            if finding.healthy and (why := came_near(endpoint, finding)):
                finding = probing.Finding(False, why)
        except Exception as error:
            # Whatever one agent answers must not end the checks of all others.
            _log.exception("the health check of an agent failed in an unforeseen way", agent=agent.agent_id)
            finding = probing.Finding(False, f"its health check failed in an unforeseen way ({type(error).__name__})")
        found = judge(endpoint, finding, self._most_failures)
        if found.ready != endpoint.ready:
            _log.warning("health of an agent changed", agent=agent.agent_id, ready=found.ready, reason=found.reason)
        self._registry.set_endpoint(agent.agent_id, endpoint, found)


def came_near(endpoint: Endpoint, finding: probing.Finding) -> str:
    """Why an endpoint gets no calls though it is well: its name stood for another machine when it was registered, and
    now stands for this one; "" if that is not so."""
    why = probing.nearness(finding.resolved)
    if not why or probing.nearness(endpoint.dialled):
        return ""
    return f"{endpoint.address} is {finding.resolved} now, {why}; register it again"


def judge(endpoint: Endpoint, finding: probing.Finding, most_failures: int) -> Endpoint:
    """The endpoint after one more finding: unready after so many failures in a row, ready after one success."""
    if finding.healthy:
        return replace(endpoint, ready=True, reason="", resolved=finding.resolved, failures=0)
    failures = endpoint.failures + 1
    if failures < most_failures and endpoint.ready:
        return replace(endpoint, failures=failures)
    return replace(endpoint, ready=False, reason=finding.reason, failures=failures)


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration
