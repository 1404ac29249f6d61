"""The doors of Envoy: TCP for gRPC and for HTTP, a Unix socket for this user; and two to itself: before the
relay, and for what the gateway calls on somebody's behalf.

A listener is never changed at run time, for that cuts the open streams of its connections: everything that
changes is in routes, clusters, endpoints and secrets.
"""

from pathlib import Path
from typing import Any

from uapi_gateway.access.keys import LOCAL
from uapi_gateway.access.policy import ANONYMOUS
from uapi_gateway.xds import filters, limits, managers, resources, transport
from uapi_gateway.xds.managers import Chain
from uapi_gateway.xds.resources import Resource
from uapi_gateway.xds.transport import Inbound

TCP = "tcp"
UNIX = "unix"
HTTP = "http"
HOLD = "hold"
POOL_LINK = "pool-link"
INNER = "inner"


def tcp_listener(host: str, port: int, access_log: Path, tls: Inbound | None = None) -> Resource:
    """The listener for the calls of everyone."""
    manager = managers.grpc_manager(TCP, _outer(ANONYMOUS), access_log)
    return _listener(TCP, _socket(host, port), manager, _transport(tls, ["h2"]))


def unix_listener(path: Path, access_log: Path) -> Resource:
    """The listener for this user alone."""
    manager = managers.grpc_manager(UNIX, _outer(LOCAL), access_log)
    return _listener(UNIX, _pipe(path), manager)


def http_listener(host: str, port: int, tls: Inbound | None = None) -> Resource:
    """The listener for the HTTP pages."""
    mutations = [*managers.http_mutations(), *filters.early()]
    chain = Chain(mutations, filters.chain(ANONYMOUS, filters.HTTP_ACCESS))
    manager = managers.http_manager(HTTP, chain)
    return _listener(HTTP, _socket(host, port), manager, _transport(tls, ["h2", "http/1.1"]))


def hold_listener(path: Path) -> Resource:
    """The listener for the calls that Envoy sends to itself, to be held for the relay while that is away.

    A route has one way to retry: quickly, as suits workers. What the relay needs is patience.
    """
    return _listener(HOLD, _pipe(path), managers.grpc_manager(HOLD, Chain()))


def inner_listener(path: Path, access_log: Path) -> Resource:
    """The listener for the gateway's own calls on somebody's behalf: it says whose."""
    chain = Chain([*managers.grpc_mutations(), filters.for_whom()], [*filters.target(), filters.rules()])
    return _listener(INNER, _pipe(path), managers.grpc_manager(INNER, chain, access_log))


def pool_listener(path: Path) -> Resource:
    """The listener for the gateway's own calls to a pool on another machine."""
    return _listener(POOL_LINK, _pipe(path), managers.grpc_manager(POOL_LINK, Chain()))


def _outer(nobody: str) -> Chain:
    """What calls from outside go through; `nobody` is the principal of those without a credential."""
    mutations = [*managers.grpc_mutations(), *filters.early()]
    return Chain(mutations, [*filters.target(), *filters.chain(nobody)])


def _transport(tls: Inbound | None, protocols: list[str]) -> dict[str, Any]:
    if tls is None:
        return {}
    return {"transport_socket": transport.downstream(tls, protocols), **limits.handshake_options()}


def _socket(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _pipe(path: Path) -> dict[str, Any]:
    return {"pipe": {"path": str(path), "mode": 0o600}}


def _listener(
    name: str, address: dict[str, Any], manager: dict[str, Any], more: dict[str, Any] | None = None
) -> Resource:
    content = {
        "name": name,
        "address": address,
        # Else a second Envoy would share the port without a word.
        "enable_reuse_port": False,
        **limits.listener_options(for_everyone=name in (TCP, HTTP)),
        "filter_chains": [{"filters": [manager], **(more or {})}],
    }
    return resources.make(resources.LISTENER, name, content)
