"""How a listener speaks HTTP: the connection manager with its chain of filters."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentruntime import status

from uapi_gateway.xds import limits
from uapi_gateway.xds.replies import http_replies, local_replies
from uapi_gateway.xds.resources import typed
from uapi_gateway.xds.routes import AGENT_HEADER, CLUSTER_HEADER, UNREADABLE

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


@dataclass(frozen=True)
class Chain:
    """What a call goes through, in this order, before its route is taken."""

    # Mutations of headers, before anything else looks at them: in protobuf's JSON form, as `HeaderMutation` has them.
    mutations: Sequence[dict[str, Any]] = ()
    # HTTP filters by name and typed_config, before those that every call goes through last.
    filters: Sequence[dict[str, Any]] = ()


def grpc_manager(
    name: str, chain: Chain, access_log: Path | None = None, token_file: Path | None = None
) -> dict[str, Any]:
    """The manager of a listener for gRPC; its routes are the route configuration of its name.

    Args:
        name: of the listener.
        chain: what a call goes through.
        access_log: where each call is written.
        token_file: which those are told of who show no credential.
    """
    last = {
        "name": "envoy.filters.http.grpc_stats",
        # Counted per cluster and code: names of services and methods are the caller's to invent.
        "typed_config": typed(
            "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig", stats_for_all_methods=False
        ),
    }
    return _manager(
        name,
        Chain(chain.mutations, (*chain.filters, limits.whole_requests_filter(), last)),
        access_log,
        codec_type="HTTP2",
        **limits.call_options(),
        local_reply_config={"mappers": local_replies(token_file)},
        normalize_path=False,
    )


def http_manager(name: str, chain: Chain, token_file: Path | None = None) -> dict[str, Any]:
    """The manager of a listener for the HTTP pages, HTTP/1.1 or 2; its routes as above.

    One path must not be written in several ways: filters decide by it.
    """
    return _manager(
        name,
        Chain(chain.mutations, (*chain.filters, limits.page_filter())),
        None,
        codec_type="AUTO",
        **limits.page_options(),
        local_reply_config=http_replies(token_file),
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
    )


def _manager(name: str, chain: Chain, access_log: Path | None, **more: Any) -> dict[str, Any]:
    router = typed("envoy.extensions.filters.http.router.v3.Router", suppress_envoy_headers=True)
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        rds={"config_source": {"ads": {}, "resource_api_version": "V3"}, "route_config_name": name},
        http_filters=[*chain.filters, {"name": "envoy.filters.http.router", "typed_config": router}],
        generate_request_id=False,
        use_remote_address=False,
        skip_xff_append=True,
        # Who a caller is says its own certificate, never a header.
        forward_client_cert_details="SANITIZE",
        server_header_transformation="PASS_THROUGH",
        **_early(chain.mutations),
        **(_logged(access_log) if access_log else {}),
        **more,
    )
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}


def _logged(access_log: Path) -> dict[str, Any]:
    config = typed(
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        path=str(access_log),
        log_format={"json_format": _ACCESS_LOG},
    )
    return {"access_log": [{"name": "envoy.access_loggers.file", "typed_config": config}]}


def _early(mutations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if not mutations:
        return {}
    config = typed(
        "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation", mutations=list(mutations)
    )
    extension = {"name": "envoy.http.early_header_mutation.header_mutation", "typed_config": config}
    return {"early_header_mutation_extensions": [extension]}


# With these a caller could set retries, timeouts and the names of statistics.
_NO_CONTROL = {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}}


def http_mutations() -> list[dict[str, Any]]:
    """What every request to the HTTP pages loses."""
    # All of them are for the gateway, which needs to be told all that is known of the caller.
    return [_NO_CONTROL, {"remove": AGENT_HEADER}]


def grpc_mutations() -> list[dict[str, Any]]:
    """What every call from outside loses, and gets: the cluster's name, made of the agent's."""
    return [
        # An agent that sends metadata back would have its answer thrown away with the last of these.
        *(
            {"remove": name}
            for name in (CLUSTER_HEADER, limits.CONCURRENCY_HEADER, *UNREADABLE, status.NOT_BEGUN_KEY)
        ),
        _NO_CONTROL,
        {
            "append": {
                "header": {"key": CLUSTER_HEADER, "value": f"agent/%REQ({AGENT_HEADER})%"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        },
    ]
