"""The kinds of xDS resources in use, and how one becomes bytes with a version."""

import base64
import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.access_loggers.file.v3 import file_pb2
from envoy.extensions.common.matching.v3 import extension_matcher_pb2
from envoy.extensions.filters.http.buffer.v3 import buffer_pb2
from envoy.extensions.filters.http.composite.v3 import composite_pb2
from envoy.extensions.filters.http.grpc_stats.v3 import config_pb2 as grpc_stats_pb2
from envoy.extensions.filters.http.header_mutation.v3 import header_mutation_pb2 as header_filter_pb2
from envoy.extensions.filters.http.header_to_metadata.v3 import header_to_metadata_pb2
from envoy.extensions.filters.http.local_ratelimit.v3 import local_rate_limit_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.listener.http_inspector.v3 import http_inspector_pb2
from envoy.extensions.filters.listener.proxy_protocol.v3 import proxy_protocol_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.http.early_header_mutation.header_mutation.v3 import header_mutation_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.retry.priority.previous_priorities.v3 import previous_priorities_config_pb2
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2, tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.matcher.v3 import http_inputs_pb2
from google.protobuf import any_pb2, json_format, wrappers_pb2

PREFIX = "type.googleapis.com/"
LISTENER = PREFIX + "envoy.config.listener.v3.Listener"
ROUTE = PREFIX + "envoy.config.route.v3.RouteConfiguration"
CLUSTER = PREFIX + "envoy.config.cluster.v3.Cluster"
EXTENSION = PREFIX + "envoy.config.core.v3.TypedExtensionConfig"
ENDPOINTS = PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
SECRET = PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"
# Of what stands for something else; Envoy never sees one.
_REPEATED = "google.protobuf.BytesValue"

_TYPES: dict[str, Any] = {
    LISTENER: listener_pb2.Listener,
    ROUTE: route_pb2.RouteConfiguration,
    CLUSTER: cluster_pb2.Cluster,
    EXTENSION: extension_pb2.TypedExtensionConfig,
    ENDPOINTS: endpoint_pb2.ClusterLoadAssignment,
    SECRET: secret_pb2.Secret,
}
# Types that stand inside `Any`s: json_format finds them only once their modules are imported.
_WITHIN = (
    file_pb2,
    extension_matcher_pb2,
    buffer_pb2,
    composite_pb2,
    header_filter_pb2,
    local_rate_limit_pb2,
    http_inspector_pb2,
    proxy_protocol_pb2,
    grpc_stats_pb2,
    header_to_metadata_pb2,
    router_pb2,
    http_connection_manager_pb2,
    header_mutation_pb2,
    previous_hosts_pb2,
    previous_priorities_config_pb2,
    http_protocol_options_pb2,
    http_inputs_pb2,
    raw_buffer_pb2,
    tls_pb2,
)


@dataclass(frozen=True)
class Resource:
    """A resource as it goes to Envoy. Its version is a hash of its content, so it survives restarts."""

    name: str
    version: str
    body: Any  # google.protobuf.Any


def make(kind: str, name: str, content: dict[str, Any]) -> Resource:
    """A resource out of its message in protobuf's JSON form."""
    # Of the JSON: bytes inside an `Any` come out in another order in another process.
    canonical = json.dumps(content, sort_keys=True).encode()
    message = json_format.ParseDict(content, _TYPES[kind]())
    _put_repeated(message)
    return _resource(kind, name, message.SerializeToString(), canonical)


def repeated(packed: dict[str, Any]) -> dict[str, Any]:
    """Stands in a resource for an `Any` in JSON form that is there many times: `make` reads it once, for all of them.

    Reading JSON is most of what a change of the routes costs. Not for what stands within another `Any`.
    """
    # As bytes, for texts are searched for half characters.
    return typed(_REPEATED, value=base64.b64encode(json.dumps(packed, sort_keys=True).encode()).decode())


def _put_repeated(message: Any) -> None:
    """Puts in place what `repeated` stands for, anywhere below a message."""
    for described, value in message.ListFields():
        if described.message_type is None:
            continue
        if described.message_type.GetOptions().map_entry:
            below = value.values() if described.message_type.fields_by_name["value"].message_type else ()
        else:
            below = value if described.is_repeated else (value,)
        for each in below:
            if not isinstance(each, any_pb2.Any):
                _put_repeated(each)
            elif each.type_url == PREFIX + _REPEATED:
                each.CopyFrom(_read(wrappers_pb2.BytesValue.FromString(each.value).value))


@lru_cache(maxsize=1024)
def _read(packed: bytes) -> Any:
    return json_format.Parse(packed, any_pb2.Any())


def wrap(kind: str, name: str, message: Any) -> Resource:
    """A resource out of its message, which must hold no map inside an `Any`."""
    body = message.SerializeToString(deterministic=True)
    return _resource(kind, name, body, body)


def _resource(kind: str, name: str, body: bytes, hashed: bytes) -> Resource:
    version = hashlib.blake2b(hashed, digest_size=8).hexdigest()
    return Resource(name, version, any_pb2.Any(type_url=kind, value=body))


def typed(name: str, **fields: Any) -> dict[str, Any]:
    """An `Any` in JSON form, of a message by its full name."""
    return {"@type": PREFIX + name, **fields}
