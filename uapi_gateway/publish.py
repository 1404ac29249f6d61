"""Keeps Envoy's resources equal to the registry: clusters and endpoints of agents and workers, and the routes."""

import ipaddress
from pathlib import Path

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from agentruntime.home import Home

from uapi_gateway.outward import Outward
from uapi_gateway.registry import Agent, Endpoint, Registry
from uapi_gateway.sockets import TLS_SCHEME, Ports, inner_socket, split_endpoint, system_calls_socket
from uapi_gateway.xds import clusters, listeners, resources, routes, transport
from uapi_gateway.xds.cache import Cache
from uapi_gateway.xds.transport import Inbound


class Publisher:
    """Listens to the registry and writes to the cache. Without `publish_all` nothing is there to be served."""

    def __init__(self, registry: Registry, cache: Cache, *, relay: Path, hold: Path, outward: Outward) -> None:
        self._registry = registry
        self._cache = cache
        self._relay = relay
        self._hold = hold
        self._outward = outward
        self._plan: routes.RoutePlan | None = None
        # Clusters published for an agent: its own, and one for each of its workers.
        self._names: dict[str, set[str]] = {}
        self._shapes: dict[str, object] = {}

    def publish_platform(self, *, control: Path, pool: Path, http: Path, kernel: Path) -> None:
        """The clusters that are always there."""
        self._cache.put(resources.CLUSTER, clusters.http_cluster(http))
        for name, path in ((clusters.CONTROL, control), (clusters.POOL, pool), (clusters.KERNEL, kernel)):
            self._cache.put(resources.CLUSTER, clusters.socket_cluster(name, path))
        self._cache.put(resources.CLUSTER, clusters.relay_cluster(self._relay))

    def publish_listeners(
        self, *, home: Home, host: str, ports: Ports, access_log: Path, tls: Inbound | None = None
    ) -> None:
        """The listeners, once and for all."""
        # Where only this machine's programs connect, they are told where this user's own key is.
        told = home.token_file if ipaddress.ip_address(host).is_loopback else None
        self._cache.put(resources.LISTENER, listeners.tcp_listener(host, ports.grpc, access_log, tls, told))
        self._cache.put(resources.LISTENER, listeners.unix_listener(home.gateway_socket, access_log))
        self._cache.put(resources.LISTENER, listeners.http_listener(host, ports.http, tls, told))
        self._cache.put(resources.ROUTE, routes.http_configuration(listeners.HTTP, clusters.HTTP))
        self._cache.put(resources.LISTENER, listeners.hold_listener(self._hold))
        self._cache.put(resources.LISTENER, listeners.inner_listener(inner_socket(home), access_log))
        calls = listeners.system_call_listener(system_calls_socket(home), access_log)
        self._cache.put(resources.LISTENER, calls)

    def publish_remote_pool(self, endpoint: str, link: Path) -> None:
        """A pool on another machine in the place of this one's, and the gateway's own way to it."""
        self._outward.check()
        tls = transport.upstream(split_endpoint(endpoint)[0], known=self._outward.shows_own)
        self._cache.put(resources.CLUSTER, clusters.remote_cluster(clusters.POOL, endpoint, tls))
        self._cache.put(resources.LISTENER, listeners.pool_listener(link))
        self._cache.put(resources.ROUTE, routes.whole_configuration(listeners.POOL_LINK, clusters.POOL))

    def publish_all(self) -> None:
        """All agents and the routes; from then on every change of the registry."""
        for agent in self._registry.agents():
            self._publish_agent(agent.agent_id)
            self._shapes[agent.agent_id] = _shape(agent)
        self._publish_routes()
        self._registry.listeners.append(self._changed)

    def _changed(self, agent_id: str) -> None:
        self._publish_agent(agent_id)
        # Most changes are of workers that come and go, which no route depends on.
        shape = _shape(self._registry.get(agent_id))
        if self._shapes.pop(agent_id, None) != shape:
            self._publish_routes()
        if shape is not None:
            self._shapes[agent_id] = shape

    def _publish_agent(self, agent_id: str) -> None:
        agent = self._registry.get(agent_id)
        wanted = set()
        if agent is not None:
            wanted.add(agent_id)
            self._put(agent_id, agent, agent.endpoints)
            self._put_cached(agent)
            for worker_id in {endpoint.worker_id for endpoint in agent.endpoints if endpoint.worker_id}:
                # An exact agent id wins over the name of a worker.
                if self._registry.get(worker_id) is None:
                    wanted.add(worker_id)
                    # While a worker is replaced, its successor of the same name is beside it.
                    named = tuple(endpoint for endpoint in agent.endpoints if endpoint.worker_id == worker_id)
                    self._put(worker_id, agent, named)
        before = self._names.pop(agent_id, set())
        if wanted:
            self._names[agent_id] = wanted
        for name in before - wanted:
            # The name of an agent that is gone may still be the name of a worker, and the other way round.
            target = self._registry.find(name)
            if target is not None:
                self._put(name, target.agent, target.endpoints)
                self._names.setdefault(target.agent.agent_id, set()).add(name)
                continue
            for idempotent in (True, False):
                self._remove(clusters.cluster_name(name, idempotent=idempotent))
        if agent is None:
            self._remove(clusters.CACHED_PREFIX + agent_id)

    def _put(self, name: str, agent: Agent, endpoints: tuple[Endpoint, ...]) -> None:
        # An agent from outside has one endpoint.
        over_tls = next((e.address for e in endpoints if e.address.startswith(TLS_SCHEME)), "")
        socket = transport.upstream(split_endpoint(over_tls)[0], known=self._outward.shows_own) if over_tls else None
        cluster = clusters.agent_cluster(name, agent.traffic, idempotent=agent.idempotent, tls=socket)
        self._cache.put(resources.CLUSTER, cluster)
        addresses = _weights(agent, endpoints)
        self._cache.put(resources.ENDPOINTS, clusters.agent_endpoints(cluster.name, addresses, self._hold))
        # If that is news of the agent.
        self._remove(clusters.cluster_name(name, idempotent=not agent.idempotent))

    def _put_cached(self, agent: Agent) -> None:
        known = self._cache.get(resources.CLUSTER, clusters.CACHED_PREFIX + agent.agent_id)
        # Stays when the cache is turned off: Envoy would forget the calls that it has counted there.
        if known is None and agent.agent_id not in routes.cached([agent]):
            return
        weights = _weights(agent, agent.endpoints)
        self._cache.put(resources.CLUSTER, clusters.cached_cluster(agent.agent_id))
        endpoints = clusters.cached_endpoints(agent.agent_id, weights, self._relay, self._hold)
        self._cache.put(resources.ENDPOINTS, endpoints)

    def _remove(self, cluster: str) -> None:
        self._cache.remove(resources.CLUSTER, cluster)
        self._cache.remove(resources.ENDPOINTS, cluster)

    def _publish_routes(self) -> None:
        wanted = routes.plan(self._registry.agents(), self._registry.worker_ids())
        before, self._plan = self._plan, wanted
        if before != wanted:
            self._publish_callers_routes(wanted)
        if before is None or before != wanted or before.edges != wanted.edges:
            self._cache.put(resources.ROUTE, routes.system_call_configuration(listeners.CALLS, wanted))

    def _publish_callers_routes(self, wanted: routes.RoutePlan) -> None:
        for name, own in ((listeners.TCP, False), (listeners.UNIX, True), (listeners.INNER, False)):
            resource = routes.route_configuration(name, wanted, own=own)
            self._cache.put(resources.ROUTE, resource)
        self._cache.put(resources.ROUTE, routes.hold_configuration(listeners.HOLD, wanted))


def _weights(agent: Agent, endpoints: tuple[Endpoint, ...]) -> dict[str, int]:
    """The addresses that are ready, with their weights."""
    weighed = agent.traffic.load_balancer == pool.LOAD_BALANCER_HEALTH_BASED
    return {each.dialled: each.weight if weighed else 0 for each in endpoints if each.ready}


def _shape(agent: Agent | None) -> object:
    """All of an agent that routes depend on."""
    if agent is None:
        return None
    # Workers are named in the routes only of agents whose calls may not be repeated.
    workers = () if agent.idempotent else tuple(sorted(e.worker_id for e in agent.endpoints))
    own = agent.services, agent.descriptors, agent.stopped, agent.idempotent, agent.cache is not None, workers
    return own, agent.permissions.agents, agent.demands
