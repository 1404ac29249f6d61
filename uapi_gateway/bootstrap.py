"""The file that Envoy starts with: where its control plane is. Everything else comes from there."""

import json
from pathlib import Path
from typing import Any

from agentruntime.files import write_atomically
from agentruntime.home import Home

from uapi_gateway.sockets import ejections_pipe, xds_socket
from uapi_gateway.xds.resources import typed

_CONTROL_PLANE = "xds"
_STATISTICS = [
    {"suffix": suffix}
    for suffix in (
        ".upstream_rq_time",
        ".upstream_rq_active",
        ".upstream_rq_retry",
        ".downstream_rq_active",
        ".downstream_rq_total",
        ".downstream_rq_completed",
        ".update_rejected",
    )
] + [{"contains": ".grpc."}, {"prefix": "server."}, {"prefix": "overload."}]


def bootstrap(home: Home) -> dict[str, Any]:
    """Envoy's bootstrap configuration, in JSON form."""
    control_plane = {
        "envoy_grpc": {
            "cluster_name": _CONTROL_PLANE,
            # The default waits 17 s after an outage of 25 s; this finds a restarted gateway within 1 s.
            "retry_policy": {"retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"}},
        }
    }
    source = {"ads": {}, "resource_api_version": "V3"}
    grpc_api = {"api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": [control_plane]}
    return {
        "node": {"id": "envoy", "cluster": "agentruntime"},
        "admin": {"address": {"pipe": {"path": str(home.envoy_admin_socket), "mode": 0o600}}},
        "dynamic_resources": {"ads_config": grpc_api, "cds_config": source, "lds_config": source},
        # Most agents sleep: what a cluster needs in each thread, and its counters, are made at its first call.
        "deferred_stat_options": {"enable_deferred_creation_stats": True},
        "cluster_manager": {
            "enable_deferred_cluster_creation": True,
            "load_stats_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [control_plane],
            },
            "outlier_detection": {"event_log_path": str(ejections_pipe(home))},
        },
        # Only what somebody reads: all of a cluster's statistics cost more than the rest of it.
        "stats_config": {"stats_matcher": {"inclusion_list": {"patterns": _STATISTICS}}},
        "static_resources": {"clusters": [_control_plane_cluster(xds_socket(home))]},
        # Keeps Envoy from reading a limit of connections into its absence.
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": typed(
                        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                        max_active_downstream_connections=20_000,
                    ),
                }
            ]
        },
    }


def write_bootstrap(home: Home, path: Path) -> None:
    """Writes the bootstrap configuration, readable for this user alone.

    Raises:
        DiskFull: there is no room. An Envoy that is started again needs none.
    """
    content = json.dumps(bootstrap(home), indent=1).encode()
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)


def _control_plane_cluster(socket: Path) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(socket)}}}}
    return {
        "name": _CONTROL_PLANE,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": _CONTROL_PLANE, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                explicit_http_config={
                    "http2_protocol_options": {"connection_keepalive": {"interval": "30s", "timeout": "5s"}}
                },
            )
        },
    }
