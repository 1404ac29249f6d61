"""Clusters and their endpoints: what Envoy may send a call to."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from google.protobuf import json_format

from uapi_gateway.registry import Traffic
from uapi_gateway.sockets import TLS_SCHEME, split_endpoint
from uapi_gateway.xds import limits, resources
from uapi_gateway.xds.resources import Resource, typed

AGENT_PREFIX = "agent/"
# Of agents whose calls may not be repeated. Only routes that know so lead there: none is repeated by routes that have
# not heard of the agent yet.
ONCE_PREFIX = "once/"
CONTROL = "control"
POOL = "pool"
# The gateway's answers to system calls.
KERNEL = "kernel"
# The gateway's HTTP pages.
HTTP = "http"
# The relay by itself.
RELAY = "relay"
# Of calls that a cache may answer: the same agent by way of the relay.
CACHED_PREFIX = "cached/"
# An ejection that repeats lasts longer each time, up to this.
LONGEST_EJECTION_S = 30.0
# The others are least-request; by health, with weights. Of Envoy's two consistent hashes this is the one under which
# nearly all conversations stay where they are when another worker comes or goes: RING_HASH moved half as many again.
_POLICIES: dict[int, str] = {pool.LOAD_BALANCER_ROUND_ROBIN: "ROUND_ROBIN", pool.LOAD_BALANCER_STICKY: "MAGLEV"}
# One worker of a thousand that is well gets all calls.
_NEVER_SHORT_PERCENT = 100_000
# Uvicorn closes them after 5: it must not be the first, for a request may be on its way then.
_HTTP_IDLE_S = 3.0
# In an endpoint's metadata.
_OVER_TLS = "tls"
_PROTOCOL = "typed_extension_protocol_options"
# Queues live in the workers; Envoy only must not be a limit before them.
_MOST_REQUESTS = 100_000


def cluster_name(name: str, *, idempotent: bool) -> str:
    """Of an agent or worker, by whether its calls may be repeated."""
    return (AGENT_PREFIX if idempotent else ONCE_PREFIX) + name


def named(cluster: str) -> str:
    """The agent or worker of a cluster; "" where it is no agent's, or its cache's."""
    for prefix in (AGENT_PREFIX, ONCE_PREFIX):
        if cluster.startswith(prefix):
            return cluster.removeprefix(prefix)
    return ""


def agent_cluster(name: str, traffic: Traffic, *, idempotent: bool, tls: dict[str, Any] | None = None) -> Resource:
    """The cluster of an agent or of one worker; its endpoints come by EDS.

    Args:
        name: of the agent or worker.
        traffic: how its calls are spread.
        idempotent: whether they may be repeated.
        tls: the transport socket to those of its endpoints that speak TLS; Envoy's own way to the relay does not.
    """
    message = cluster_pb2.Cluster()
    message.CopyFrom(_agent_template(traffic.load_balancer, traffic.failure_threshold))
    message.name = cluster_name(name, idempotent=idempotent)
    if not idempotent:
        # Statistics do not depend on it.
        message.alt_stat_name = AGENT_PREFIX + name
    if tls:
        match = {"name": "tls", "match": {_OVER_TLS: True}, "transport_socket": tls}
        json_format.ParseDict({"transport_socket_matches": [match]}, message)
    return resources.wrap(resources.CLUSTER, message.name, message)


def cached_cluster(agent_id: str) -> Resource:
    """The cluster of the calls of an agent that its cache may answer."""
    message = cluster_pb2.Cluster()
    message.CopyFrom(_agent_template(Traffic().load_balancer, 0))
    message.name = CACHED_PREFIX + agent_id
    return resources.wrap(resources.CLUSTER, message.name, message)


def socket_cluster(name: str, path: Path) -> Resource:
    """A cluster that is one Unix socket."""
    return resources.make(resources.CLUSTER, name, _socket_content(name, path))


def remote_cluster(name: str, endpoint: str, tls: dict[str, Any]) -> Resource:
    """A cluster that is one program on another machine.

    Args:
        name: of the cluster.
        endpoint: https://host:port.
        tls: the transport socket.
    """
    host, port = split_endpoint(endpoint)
    address = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}
    content = {
        **_common(),
        "name": name,
        "type": "STRICT_DNS",
        "transport_socket": tls,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [address]}]},
    }
    return resources.make(resources.CLUSTER, name, content)


def http_cluster(path: Path) -> Resource:
    """The gateway's HTTP port, on a Unix socket that speaks HTTP/1.1."""
    content = {**_socket_content(HTTP, path), _PROTOCOL: _protocol({"http_protocol_options": {}}, _HTTP_IDLE_S)}
    return resources.make(resources.CLUSTER, HTTP, content)


def _socket_content(name: str, path: Path) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(path)}}}}
    return {
        **_common(),
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def relay_cluster(path: Path) -> Resource:
    """The relay. All calls that it holds may be made again at once, when the gateway has died."""
    content = _socket_content(RELAY, path)
    for threshold in content["circuit_breakers"]["thresholds"]:
        threshold["retry_budget"] = {"budget_percent": {"value": 100}, "min_retry_concurrency": _MOST_REQUESTS}
    return resources.make(resources.CLUSTER, RELAY, content)


def agent_endpoints(cluster: str, addresses: Mapping[str, int], hold: Path) -> Resource:
    """The endpoints of an agent or worker: those that are ready, and behind them, by way of `hold`, the relay.

    Args:
        cluster: of the agent or worker.
        addresses: "ip:port" or "unix:/path" of what is ready for calls, each with its weight; 0 is as any other.
        hold: it gets the calls when none of the addresses can be reached.
    """
    return _endpoints(cluster, addresses, {f"unix:{hold}": 0})


def cached_endpoints(agent_id: str, addresses: Mapping[str, int], relay: Path, hold: Path) -> Resource:
    """The endpoints of the calls that an agent's cache may answer: the relay, and behind it those that are ready.

    While the gateway is away, workers answer themselves. For the arguments see `agent_endpoints`.
    """
    return _endpoints(CACHED_PREFIX + agent_id, {f"unix:{relay}": 0}, addresses, {f"unix:{hold}": 0})


def _endpoints(cluster: str, *by_priority: Mapping[str, int]) -> Resource:
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name=cluster)
    # By default the relay would get a share of the calls as soon as more than 2 of 7 workers are ejected.
    message.policy.overprovisioning_factor.value = _NEVER_SHORT_PERCENT
    for priority, addresses in enumerate(by_priority):
        group = message.endpoints.add(priority=priority)
        for address, weight in sorted(addresses.items()):
            host, port = split_endpoint(address)
            endpoint = group.lb_endpoints.add()
            if address.startswith(TLS_SCHEME):
                endpoint.metadata.filter_metadata["envoy.transport_socket_match"].update({_OVER_TLS: True})
            if weight:
                endpoint.load_balancing_weight.value = weight
            target = endpoint.endpoint.address
            if port:
                target.socket_address.address = host
                target.socket_address.port_value = port
            else:
                target.pipe.path = host
    return resources.wrap(resources.ENDPOINTS, cluster, message)


@lru_cache(maxsize=64)
def _agent_template(load_balancer: int, failure_threshold: int) -> Any:
    policy = _POLICIES.get(load_balancer, "LEAST_REQUEST")
    # One that failed its calls gets time; one that only broke a connection is most often gone from the endpoints by
    # itself, and must not be missed for long if it is not.
    ejection = {"base_ejection_time": "5s", "max_ejection_time": f"{LONGEST_EJECTION_S:g}s"}
    if not failure_threshold:
        ejection = {"base_ejection_time": "1s", "max_ejection_time": "5s"}
    content = {
        **_common(),
        "name": "template",
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}},
        "lb_policy": policy,
        "common_lb_config": {
            # With no worker left, calls go to the relay rather than to a dead worker.
            "healthy_panic_threshold": {"value": 0},
            # Else the second ejection within a second takes effect only at its end, and so does a change of weights.
            "update_merge_window": "0s",
        },
        # Without a circuit breaker only what happens between Envoy and a worker counts: by answering with errors on
        # demand, a caller could otherwise have workers taken out. With one, so do gRPC statuses that stand for 5xx.
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 1,
            "enforcing_consecutive_local_origin_failure": 100,
            **({"consecutive_5xx": failure_threshold} if failure_threshold else {}),
            "enforcing_consecutive_5xx": 100 if failure_threshold else 0,
            "enforcing_consecutive_gateway_failure": 0,
            "enforcing_success_rate": 0,
            "enforcing_local_origin_success_rate": 0,
            "interval": "1s",
            **ejection,
            # All workers, but not the last host of all: that is the way to the relay, whose refusals are no failures.
            "max_ejection_percent": 99,
        },
    }
    return json_format.ParseDict(content, cluster_pb2.Cluster())


def _common() -> dict[str, Any]:
    return {
        "connect_timeout": "1s",
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": _MOST_REQUESTS,
                    "max_pending_requests": _MOST_REQUESTS,
                    "max_requests": _MOST_REQUESTS,
                    # A kill repeats all calls in flight at once; the default of 3 fails the rest of them.
                    "max_retries": 1000,
                    "retry_budget": {"budget_percent": {"value": 50}, "min_retry_concurrency": 1000},
                }
            ]
        },
        _PROTOCOL: _protocol({"http2_protocol_options": limits.upstream_http2_options()}),
    }


def _protocol(spoken: dict[str, Any], idle_s: float = 0) -> dict[str, Any]:
    """How the other side is spoken to; connections on which nothing is asked are closed after `idle_s`, if given."""
    idle = {"common_http_protocol_options": {"idle_timeout": f"{idle_s}s"}} if idle_s else {}
    kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {kind: typed(kind, explicit_http_config=spoken, **idle)}
