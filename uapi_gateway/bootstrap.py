"""The file that Envoy starts with: where its control plane is. Everything else comes from there."""

import json
from pathlib import Path
from typing import Any

from agentruntime.files import write_atomically

from uapi_gateway.settings import Settings
from uapi_gateway.sockets import ejections_pipe, xds_socket
from uapi_gateway.xds.resources import typed

_CONTROL_PLANE = "xds"
_HEAP = "envoy.resource_monitors.fixed_heap"
# Calls that one connection begins before the others have their turn: a flood of them takes none from its neighbours.
_RUNTIME = {"http.max_requests_per_io_cycle": 64}
# Streams that hold less do not count among those that are ended for what they hold: 2 to the power of this, in bytes.
_WORTH_ENDING_POWER = 16
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


def bootstrap(settings: Settings) -> dict[str, Any]:
    """Envoy's bootstrap configuration, in JSON form."""
    home = settings.home
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
        "overload_manager": _overload_manager(settings),
        "layered_runtime": {"layers": [{"name": "platform", "static_layer": _RUNTIME}]},
    }


def write_bootstrap(settings: Settings, path: Path) -> None:
    """Writes the bootstrap configuration, readable for this user alone.

    Raises:
        DiskFull: there is no room. An Envoy that is started again needs none.
    """
    content = json.dumps(bootstrap(settings), indent=1).encode()
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)


def _overload_manager(settings: Settings) -> dict[str, Any]:
    """What Envoy does about too many connections, and as its heap nears its limit.

    First memory that is free is given back; then streams are ended, those that hold the most first; when that does
    not help, calls are refused, and connections. The platform's own user gets in all the same.
    """
    connections = typed(
        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        max_active_downstream_connections=settings.max_connections,
    )
    heap = typed(
        "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
        max_heap_size_bytes=settings.envoy_heap_bytes,
    )
    return {
        "refresh_interval": "0.1s",
        "resource_monitors": [
            {"name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": connections},
            {"name": _HEAP, "typed_config": heap},
        ],
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": _WORTH_ENDING_POWER},
        "actions": [
            _action("shrink_heap", {"threshold": {"value": 0.7}}),
            _action(
                "reset_high_memory_stream", {"scaled": {"scaling_threshold": 0.75, "saturation_threshold": 0.95}}
            ),
            _action("stop_accepting_requests", {"threshold": {"value": 0.97}}),
        ],
        "loadshed_points": [
            {
                "name": "envoy.load_shed_points.tcp_listener_accept",
                "triggers": [{"name": _HEAP, "threshold": {"value": 0.98}}],
            }
        ],
    }


def _action(name: str, trigger: dict[str, Any]) -> dict[str, Any]:
    return {"name": f"envoy.overload_actions.{name}", "triggers": [{"name": _HEAP, **trigger}]}


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
