"""The two doors of Envoy: TCP, and a Unix socket for this user; and one to itself, in front of the relay.

A listener is never changed at run time, for that cuts the open streams of its connections: everything that
changes is in routes, clusters and endpoints.
"""

import base64
from pathlib import Path
from typing import Any

from agentruntime import status
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from uapi_gateway.xds import limits, resources
from uapi_gateway.xds.resources import Resource, typed
from uapi_gateway.xds.routes import AGENT_HEADER, CLUSTER_HEADER, UNREADABLE

TCP = "tcp"
UNIX = "unix"
HOLD = "hold"
# What stands in one line of the access log.
_ACCESS_LOG = {
    "time": "%START_TIME%",
    "agent": "%REQ(X-UAPI-AGENT):63%",
    "method": "%REQ(:PATH):256%",
    "grpc_status": "%GRPC_STATUS%",
    "duration_ms": "%DURATION%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "cluster": "%UPSTREAM_CLUSTER%",
    "worker": "%UPSTREAM_HOST%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "flags": "%RESPONSE_FLAGS%",
    "traceparent": "%REQ(TRACEPARENT):64%",
}


def tcp_listener(host: str, port: int, access_log: Path) -> Resource:
    """The listener for everyone on this machine."""
    mutations = {"early_header_mutation_extensions": [_early_headers()], **_logged(access_log)}
    return _listener(TCP, {"socket_address": {"address": host, "port_value": port}}, **mutations)


def unix_listener(path: Path, access_log: Path) -> Resource:
    """The listener for this user alone."""
    mutations = {"early_header_mutation_extensions": [_early_headers()], **_logged(access_log)}
    return _listener(UNIX, {"pipe": {"path": str(path), "mode": 0o600}}, **mutations)


def hold_listener(path: Path) -> Resource:
    """The listener for the calls that Envoy sends to itself, to be held for the relay while that is away.

    A route has one way to retry: quickly, as suits workers. What the relay needs is patience.
    """
    return _listener(HOLD, {"pipe": {"path": str(path), "mode": 0o600}})


def _logged(access_log: Path) -> dict[str, Any]:
    config = typed(
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        path=str(access_log),
        log_format={"json_format": _ACCESS_LOG},
    )
    return {"access_log": [{"name": "envoy.access_loggers.file", "typed_config": config}]}


def _listener(name: str, address: dict[str, Any], **more: Any) -> Resource:
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        codec_type="HTTP2",
        rds={"config_source": {"ads": {}, "resource_api_version": "V3"}, "route_config_name": name},
        http_filters=[
            limits.whole_requests_filter(),
            {
                "name": "envoy.filters.http.grpc_stats",
                # Counted per cluster and code: names of services and methods are the caller's to invent.
                "typed_config": typed(
                    "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig", stats_for_all_methods=False
                ),
            },
            {
                "name": "envoy.filters.http.router",
                "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", suppress_envoy_headers=True),
            },
        ],
        local_reply_config={"mappers": _local_replies()},
        **limits.manager_options(),
        http2_protocol_options=limits.http2_options(),
        generate_request_id=False,
        use_remote_address=False,
        skip_xff_append=True,
        server_header_transformation="PASS_THROUGH",
        normalize_path=False,
        **more,
    )
    content = {
        "name": name,
        "address": address,
        # Else a second Envoy would share the port without a word.
        "enable_reuse_port": False,
        **limits.listener_options(for_everyone=name == TCP),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    return resources.make(resources.LISTENER, name, content)


def _early_headers() -> dict[str, Any]:
    """Makes the cluster's name of the agent's, before anything looks at the headers."""
    mutations = [
        # An agent that sends metadata back would have its answer thrown away with the last of these.
        *({"remove": name} for name in (CLUSTER_HEADER, *UNREADABLE, status.NOT_BEGUN_KEY)),
        # With these a caller could set retries, timeouts and the names of statistics.
        {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}},
        {
            "append": {
                "header": {"key": CLUSTER_HEADER, "value": f"agent/%REQ({AGENT_HEADER})%"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        },
    ]
    config = typed(
        "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation", mutations=mutations
    )
    return {"name": "envoy.http.early_header_mutation.header_mutation", "typed_config": config}


def _local_replies() -> list[dict[str, Any]]:
    """What Envoy answers by itself, as gRPC statuses with a reason."""
    agent = f"%REQ({AGENT_HEADER}):63%"
    return [
        _reply(
            {"response_flag_filter": {"flags": ["NC"]}},
            code=5,
            http=404,
            reason="AGENT_NOT_FOUND",
            message="agent not found",
            text=f"agent '{agent}' not found",
        ),
        _reply(
            {"response_flag_filter": {"flags": ["DT"]}},
            code=4,
            http=504,
            reason="DEADLINE_EXCEEDED",
            message="the call's deadline has passed",
            text="the call's deadline has passed",
        ),
        _reply(
            _both({"response_flag_filter": {"flags": ["UC"]}}, _has(AGENT_HEADER)),
            code=14,
            http=503,
            reason="WORKER_LOST",
            message="the worker ended during the call",
            text=f"the worker of agent '{agent}' ended during the call",
        ),
        _reply(
            _both({"response_flag_filter": {"flags": ["UF", "UH", "URX"]}}, _has(AGENT_HEADER)),
            code=14,
            http=503,
            reason="AGENT_NOT_READY",
            message="no worker could be reached",
            text=f"no worker of agent '{agent}' could be reached",
        ),
        _reply(
            _both({"response_flag_filter": {"flags": ["UF", "UH", "URX"]}}, _begins(":path", "/uapi.v1.AgentPool/")),
            code=14,
            http=503,
            reason="POOL_UNAVAILABLE",
            message="the pool does not answer; `agent status` says what runs",
            text="the pool does not answer; `agent status` says what runs",
        ),
        _reply(
            {
                "status_code_filter": {
                    "comparison": {"op": "EQ", "value": {"default_value": 431, "runtime_key": "uapi.headers"}}
                }
            },
            code=8,
            http=431,
            reason="METADATA_TOO_LARGE",
            message="the call's metadata is larger than 60 KiB",
            text="the call's metadata is larger than 60 KiB",
        ),
    ]


def _reply(match: dict[str, Any], *, code: int, http: int, reason: str, message: str, text: str) -> dict[str, Any]:
    headers = {"grpc-status": str(code), status.DETAILS_KEY: _details(code, reason, message)}
    return {
        "filter": match,
        "status_code": http,
        "headers_to_add": [
            {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for key, value in headers.items()
        ],
        "body_format_override": {"text_format_source": {"inline_string": text}},
    }


def _details(code: int, reason: str, message: str) -> str:
    """`grpc-status-details-bin`; unpadded, as gRPC over HTTP/2 asks of senders of binary metadata."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=status.DOMAIN))
    wire = status_pb2.Status(code=code, message=message, details=[detail]).SerializeToString()
    return base64.b64encode(wire).decode().rstrip("=")


def _both(*filters: dict[str, Any]) -> dict[str, Any]:
    return {"and_filter": {"filters": list(filters)}}


def _has(header: str) -> dict[str, Any]:
    return {"header_filter": {"header": {"name": header, "present_match": True}}}


def _begins(header: str, prefix: str) -> dict[str, Any]:
    return {"header_filter": {"header": {"name": header, "string_match": {"prefix": prefix}}}}
