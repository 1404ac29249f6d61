"""What callers may take of Envoy: connections, streams, headers, bytes, and calls per second.

What is left to Envoy's own defaults stands in docs/security.md: floods of control frames, of empty frames and of
resets.
"""

from collections.abc import Mapping
from typing import Any

from envoy.extensions.common.matching.v3 import extension_matcher_pb2
from envoy.extensions.filters.http.header_mutation.v3 import header_mutation_pb2
from envoy.extensions.filters.http.local_ratelimit.v3 import local_rate_limit_pb2
from google.protobuf import json_format

from uapi_gateway.access.headers import PRINCIPAL as PRINCIPAL_HEADER
from uapi_gateway.xds.filters import changing
from uapi_gateway.xds.resources import typed

# How many calls the caller may have in flight; Envoy says it to the worker, which counts.
CONCURRENCY_HEADER = "x-uapi-concurrency"
# Its buckets are nobody's business: who runs the platform may call it.
_UNLIMITED = "local"
# The name of the filter that takes in whole requests; routes say by that name which.
WHOLE_FILTER = "uapi.whole_requests"
# What changes with the keys comes by ECDS, by these names.
RATES, CONCURRENCY = "uapi.rates", "uapi.concurrency"
# Where nobody has a limit, these are filters of another kind, which without mutations cost a call next to nothing.
_NOTHING = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"

# Of gRPC itself, in front of each message: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
_PREFIX_BYTES = 5
# RFC 9113 recommends at least 100; a channel that wants more queues on the caller's side.
_MOST_STREAMS = 4096
# What a caller that does not read keeps of each stream, on its side of Envoy.
_WINDOW_BYTES = 2**18
# Of the workers' side: an answer of the longest kind (4 MiB, a worker's own limit) leaves the worker at once, however
# slowly it is read. Where streams that nobody reads add up, they meet the heap's limit, not the window that they
# share with everybody's calls to that worker; this is the largest there is (RFC 9113, section 6.9.1).
_ANSWER_WINDOW_BYTES = 4 * 2**20 + 2**16
_LARGEST_WINDOW_BYTES = 2**31 - 1
# Envoy's default; more than 100 are refused.
_MOST_HEADERS = 100
_HEADERS_KIB = 60
# Until a new connection has said its first bytes, and a call all of its headers.
_FIRST_WORD_S = 10
# A peer that is gone without a word is found out by pings. One that is there, and quiet, answers them.
_PING = {"interval": "60s", "timeout": "20s"}
# An answer that is complete may take so long to be read.
_FLUSH_S = 300
# Of pages over HTTP.
_PAGE_S = 60
_PAGE_BYTES = 2**20
# Until the body of a request is there.
_BODY_S = 30
# Of an API over HTTP: an answer that is not streamed is quiet until the agent is done, streams have heart beats.
_QUIET_S = 3600
_BODY_BYTES = 4 * 2**20
_PAGE_FILTER = "envoy.filters.http.buffer"
# All callers' buckets beyond those of keys: the least recently used goes first.
_MOST_BUCKETS = 10_000
# What Envoy takes of either end: its buckets are of 32 bits.
_LEAST_PER_SECOND, _MOST_PER_SECOND = 1e-6, 1e9


def _http2_options() -> dict[str, Any]:
    return {
        "max_concurrent_streams": _MOST_STREAMS,
        "initial_stream_window_size": _WINDOW_BYTES,
        "initial_connection_window_size": 4 * _WINDOW_BYTES,
        "connection_keepalive": _PING,
        # One bad request ends its stream, not the connection that it shares with others.
        "override_stream_error_on_invalid_http_message": True,
    }


def upstream_http2_options() -> dict[str, Any]:
    """Of the workers' side."""
    return {
        "initial_stream_window_size": _ANSWER_WINDOW_BYTES,
        "initial_connection_window_size": _LARGEST_WINDOW_BYTES,
    }


def call_options() -> dict[str, Any]:
    """Of the HTTP connection manager of a listener for gRPC."""
    return {
        **_manager_options(idle_s=3600),
        # A stream may be quiet for hours: agents think long.
        "stream_idle_timeout": "0s",
        "stream_flush_timeout": f"{_FLUSH_S}s",
    }


def page_options() -> dict[str, Any]:
    """Of the HTTP connection manager of the listener for pages: they do not last. APIs do (`lasting`)."""
    return {
        **_manager_options(idle_s=_PAGE_S),
        "stream_idle_timeout": f"{_PAGE_S}s",
        "request_timeout": f"{_BODY_S}s",
    }


def lasting() -> dict[str, Any]:
    """For a route of an API over HTTP, whose answers take as long as an agent: its `route` and its filters."""
    buffer = typed(
        "envoy.extensions.filters.http.buffer.v3.BufferPerRoute", buffer={"max_request_bytes": _BODY_BYTES}
    )
    return {"route": {"idle_timeout": f"{_QUIET_S}s"}, "typed_per_filter_config": {_PAGE_FILTER: buffer}}


def page_filter() -> dict[str, Any]:
    """Refuses longer bodies of requests for pages, and has the others complete before uvicorn sees them."""
    config = typed("envoy.extensions.filters.http.buffer.v3.Buffer", max_request_bytes=_PAGE_BYTES)
    return {"name": _PAGE_FILTER, "typed_config": config}


def _manager_options(*, idle_s: int) -> dict[str, Any]:
    return {
        "http2_protocol_options": _http2_options(),
        "request_headers_timeout": f"{_FIRST_WORD_S}s",
        "max_request_headers_kb": _HEADERS_KIB,
        "common_http_protocol_options": {"idle_timeout": f"{idle_s}s", "max_headers_count": _MOST_HEADERS},
    }


def listener_options(*, for_everyone: bool) -> dict[str, Any]:
    """Of a listener.

    Args:
        for_everyone: it is open to more than the platform's own user, whose connections are not counted and who gets
            in when nobody else does.
    """
    options: dict[str, Any] = {"per_connection_buffer_limit_bytes": 2**20}
    if not for_everyone:
        return {**options, "ignore_global_conn_limit": True, "bypass_overload_manager": True}
    inspector = typed("envoy.extensions.filters.listener.http_inspector.v3.HttpInspector")
    return {
        **options,
        # It waits for the first bytes, and with that ends connections that say nothing.
        "listener_filters": [{"name": "envoy.filters.listener.http_inspector", "typed_config": inspector}],
        "listener_filters_timeout": f"{_FIRST_WORD_S}s",
    }


def handshake_options() -> dict[str, Any]:
    """Of a listener's filter chain with TLS."""
    return {"transport_socket_connect_timeout": f"{_FIRST_WORD_S}s"}


def whole_requests_filter() -> dict[str, Any]:
    """Holds a request of one message back until it is complete, where a route says so (`whole_request`).

    A worker reads what it is sent: callers that send slowly would fill its memory, of which Envoy's is managed.
    """
    config = typed("envoy.extensions.filters.http.buffer.v3.Buffer", max_request_bytes=1)
    return {"name": WHOLE_FILTER, "typed_config": config, "disabled": True}


def whole_request(longest_bytes: int) -> dict[str, Any]:
    """For a route whose requests are one message, of at most so many bytes."""
    buffer = {"max_request_bytes": longest_bytes + _PREFIX_BYTES}
    return {WHOLE_FILTER: typed("envoy.extensions.filters.http.buffer.v3.BufferPerRoute", buffer=buffer)}


def rate_filter() -> dict[str, Any]:
    """Counts calls per second by principal, as `rates` says."""
    return changing(RATES, "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit", _NOTHING)


def concurrency_filter() -> dict[str, Any]:
    """Says to workers how many calls the caller may have in flight, as `concurrency` has it."""
    return changing(CONCURRENCY, "envoy.extensions.common.matching.v3.ExtensionWithMatcher", _NOTHING)


def rates(known: Mapping[str, float], others: float) -> Any:
    """The configuration of the filter that counts calls per second.

    Args:
        known: calls per second of those principals that have a rate of their own.
        others: of each other one but the operator; 0 is no limit.
    """
    buckets = [_bucket(principal, rate) for principal, rate in sorted(known.items())]
    if not buckets and not others:
        return header_mutation_pb2.HeaderMutation()
    if others:
        if _UNLIMITED not in known:
            buckets.append(_bucket(_UNLIMITED, _MOST_BUCKETS * others))
        buckets.append(_bucket("", others))
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    by_principal = {"request_headers": {"header_name": PRINCIPAL_HEADER, "descriptor_key": "principal"}}
    content = {
        "stat_prefix": "rate",
        "filter_enabled": always,
        "filter_enforced": always,
        "rate_limits": [{"actions": [by_principal]}],
        "descriptors": buckets,
        # Of calls without a principal, which there are none of.
        "token_bucket": _tokens(_MOST_BUCKETS),
        "always_consume_default_token_bucket": False,
        "max_dynamic_descriptors": _MOST_BUCKETS,
    }
    return json_format.ParseDict(content, local_rate_limit_pb2.LocalRateLimit())


def concurrency(known: Mapping[str, int]) -> Any:
    """The configuration of the filter that says to workers how many calls the caller may have in flight."""
    if not known:
        return header_mutation_pb2.HeaderMutation()
    actions = {
        principal: _execute("concurrency", _header_mutation({CONCURRENCY_HEADER: str(limit)}))
        for principal, limit in sorted(known.items())
    }
    composite = {
        "name": "envoy.filters.http.composite",
        "typed_config": typed("envoy.extensions.filters.http.composite.v3.Composite"),
    }
    content = {"extension_config": composite, "xds_matcher": _by_header(PRINCIPAL_HEADER, actions)}
    return json_format.ParseDict(content, extension_matcher_pb2.ExtensionWithMatcher())


def _bucket(principal: str, rate: float) -> dict[str, Any]:
    entry = {"key": "principal", **({"value": principal} if principal else {})}
    return {"entries": [entry], "token_bucket": _tokens(rate)}


def _tokens(rate: float) -> dict[str, Any]:
    """A second's calls may come at once; of less than one a second, one."""
    rate = min(max(rate, _LEAST_PER_SECOND), _MOST_PER_SECOND)
    burst = max(1, round(rate))
    return {"max_tokens": burst, "tokens_per_fill": burst, "fill_interval": f"{max(0.05, burst / rate):.6f}s"}


def _by_header(header: str, actions: Mapping[str, Any]) -> dict[str, Any]:
    header_input = typed("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name=header)
    tree = {"input": {"name": "header", "typed_config": header_input}, "exact_match_map": {"map": actions}}
    return {"matcher_tree": tree}


def _execute(name: str, config: dict[str, Any]) -> dict[str, Any]:
    action = typed(
        "envoy.extensions.filters.http.composite.v3.ExecuteFilterAction",
        typed_config={"name": name, "typed_config": config},
    )
    return {"action": {"name": "composite-action", "typed_config": action}}


def _header_mutation(headers: Mapping[str, str]) -> dict[str, Any]:
    mutations = [
        {"append": {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}
        for key, value in headers.items()
    ]
    return typed(
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation", mutations={"request_mutations": mutations}
    )
