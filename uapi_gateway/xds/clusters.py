"""Clusters and their endpoints: what Envoy may send a call to."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from google.protobuf import json_format

from uapi_gateway.sockets import split_endpoint
from uapi_gateway.xds import resources
from uapi_gateway.xds.resources import Resource, typed

AGENT_PREFIX = "agent/"
CONTROL = "control"
POOL = "pool"
# Queues live in the workers; Envoy only must not be a limit before them.
_MOST_REQUESTS = 100_000


def agent_cluster(name: str) -> Resource:
    """The cluster of an agent or of one worker; its endpoints come by EDS."""
    message = cluster_pb2.Cluster()
    message.CopyFrom(_agent_template())
    message.name = AGENT_PREFIX + name
    return resources.wrap(resources.CLUSTER, message.name, message)


def socket_cluster(name: str, path: Path) -> Resource:
    """A cluster that is one Unix socket."""
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(path)}}}}
    content = {
        **_common(),
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    return resources.make(resources.CLUSTER, name, content)


def agent_endpoints(name: str, addresses: Iterable[str], relay: Path) -> Resource:
    """The endpoints of an agent or worker: those that are ready, and behind them the relay.

    Args:
        name: of the agent or worker.
        addresses: "ip:port" or "unix:/path" of what is ready for calls.
        relay: the relay's socket; it gets the calls when none of the addresses can be reached.
    """
    cluster = AGENT_PREFIX + name
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name=cluster)
    first = message.endpoints.add(priority=0)
    for address in sorted(addresses):
        host, port = split_endpoint(address)
        target = first.lb_endpoints.add().endpoint.address
        if port:
            target.socket_address.address = host
            target.socket_address.port_value = port
        else:
            target.pipe.path = host
    second = message.endpoints.add(priority=1)
    second.lb_endpoints.add().endpoint.address.pipe.path = str(relay)
    return resources.wrap(resources.ENDPOINTS, cluster, message)


@lru_cache(maxsize=1)
def _agent_template() -> Any:
    content = {
        **_common(),
        "name": "template",
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}},
        "lb_policy": "LEAST_REQUEST",
        # With no worker left, calls go to the relay rather than to a dead worker.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        # Only what happens between Envoy and a worker counts: by answering with errors on demand, a caller
        # could otherwise have workers taken out.
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 1,
            "enforcing_consecutive_local_origin_failure": 100,
            "enforcing_consecutive_5xx": 0,
            "enforcing_consecutive_gateway_failure": 0,
            "enforcing_success_rate": 0,
            "enforcing_local_origin_success_rate": 0,
            "interval": "1s",
            "base_ejection_time": "5s",
            "max_ejection_percent": 100,
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
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                explicit_http_config={"http2_protocol_options": {}},
            )
        },
    }
