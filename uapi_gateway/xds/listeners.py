"""The doors of Envoy: TCP for gRPC and for HTTP, a Unix socket for this user; and three to itself: before the
relay, for what the gateway calls on somebody's behalf, and for the system calls of workers.

A listener is never changed at run time, for that cuts the open streams of its connections: everything that
changes is in routes, clusters, endpoints and secrets.
"""

from pathlib import Path
from typing import Any

from agentruntime import calls

from uapi_gateway.access import headers
from uapi_gateway.access.keys import LOCAL
from uapi_gateway.access.policy import AGENT_PREFIX, ANONYMOUS
from uapi_gateway.kernel import caller
from uapi_gateway.kernel.caller import TLV_AGENT, TLV_REVISION, TLV_WORKER
from uapi_gateway.xds import filters, limits, managers, resources, transport
from uapi_gateway.xds.managers import Chain
from uapi_gateway.xds.resources import Resource, typed
from uapi_gateway.xds.routes import AGENT_HEADER
from uapi_gateway.xds.transport import Inbound

TCP = "tcp"
UNIX = "unix"
HTTP = "http"
HOLD = "hold"
POOL_LINK = "pool-link"
INNER = "inner"
CALLS = "calls"


def tcp_listener(
    host: str, port: int, access_log: Path, tls: Inbound | None = None, token_file: Path | None = None
) -> Resource:
    """The listener for the calls of everyone."""
    manager = managers.grpc_manager(TCP, _outer(ANONYMOUS, tls), access_log, token_file)
    return _listener(TCP, _socket(host, port), manager, _transport(tls, ["h2"]))


def unix_listener(path: Path, access_log: Path) -> Resource:
    """The listener for this user alone."""
    manager = managers.grpc_manager(UNIX, _outer(LOCAL), access_log)
    return _listener(UNIX, _pipe(path), manager)


def http_listener(host: str, port: int, tls: Inbound | None = None, token_file: Path | None = None) -> Resource:
    """The listener for the HTTP pages."""
    mutations = [*managers.http_mutations(), *filters.early(), *_certificate(tls)]
    known = filters.chain(ANONYMOUS, filters.HTTP_ACCESS, certified=_verifies(tls))
    manager = managers.http_manager(HTTP, Chain(mutations, [*known, limits.rate_filter()]), token_file)
    return _listener(HTTP, _socket(host, port), manager, _transport(tls, ["h2", "http/1.1"]))


def hold_listener(path: Path) -> Resource:
    """The listener for the calls that Envoy sends to itself, to be held for the relay while that is away.

    A route has one way to retry: quickly, as suits workers. What the relay needs is patience.
    """
    return _listener(HOLD, _pipe(path), managers.grpc_manager(HOLD, Chain()))


def inner_listener(path: Path, access_log: Path) -> Resource:
    """The listener for the gateway's own calls on somebody's behalf: it says whose."""
    chain = Chain(
        [*managers.grpc_mutations(), filters.for_whom()],
        [*filters.target(), *filters.inner_chain(), limits.concurrency_filter()],
    )
    return _listener(INNER, _pipe(path), managers.grpc_manager(INNER, chain, access_log))


def system_call_listener(path: Path, access_log: Path) -> Resource:
    """The listener for the connections of workers. Each begins with the gateway's word on whose it is."""
    worker = "%FILTER_STATE(envoy.network.proxy_protocol.tlv:FIELD:{})%"
    said = {
        headers.PRINCIPAL: f"{AGENT_PREFIX}{worker.format('agent')}",
        caller.AGENT: worker.format("agent"),
        caller.WORKER: worker.format("worker"),
        caller.REVISION: worker.format("revision"),
        caller.EDGE: f"{worker.format('agent')}>%REQ({AGENT_HEADER})%",
        calls.CHAIN_KEY: f"%REQ({calls.CHAIN_KEY})%,{worker.format('agent')}",
    }
    mutations = [*(filters.set_header(name, value) for name, value in said.items()), *filters.conversation()]
    chain = Chain([*managers.grpc_mutations(), *filters.early(), *mutations], filters.target())
    values = {TLV_AGENT: "agent", TLV_WORKER: "worker", TLV_REVISION: "revision"}
    proxied = typed(
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
        tlv_location="FILTER_STATE",
        rules=[{"tlv_type": kind, "on_tlv_present": {"key": key}} for kind, key in values.items()],
    )
    first = {"listener_filters": [{"name": "envoy.filters.listener.proxy_protocol", "typed_config": proxied}]}
    manager = managers.grpc_manager(CALLS, chain, access_log)
    return _listener(CALLS, _pipe(path), manager, first=first)


def pool_listener(path: Path) -> Resource:
    """The listener for the gateway's own calls to a pool on another machine."""
    return _listener(POOL_LINK, _pipe(path), managers.grpc_manager(POOL_LINK, Chain()))


def _outer(nobody: str, tls: Inbound | None = None) -> Chain:
    """What calls from outside go through; `nobody` is the principal of those without a credential."""
    mutations = [*managers.grpc_mutations(), *filters.early(), *_certificate(tls)]
    last = (limits.rate_filter(), limits.concurrency_filter())
    return Chain(mutations, [*filters.target(), *filters.chain(nobody, certified=_verifies(tls)), *last])


def _verifies(tls: Inbound | None) -> bool:
    return tls is not None and tls.verifies


def _certificate(tls: Inbound | None) -> list[dict[str, Any]]:
    return filters.certificate() if _verifies(tls) else []


def _transport(tls: Inbound | None, protocols: list[str]) -> dict[str, Any]:
    if tls is None:
        return {}
    return {"transport_socket": transport.downstream(tls, protocols), **limits.handshake_options()}


def _socket(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _pipe(path: Path) -> dict[str, Any]:
    return {"pipe": {"path": str(path), "mode": 0o600}}


def _listener(
    name: str,
    address: dict[str, Any],
    manager: dict[str, Any],
    more: dict[str, Any] | None = None,
    first: dict[str, Any] | None = None,
) -> Resource:
    content = {
        "name": name,
        "address": address,
        # Else a second Envoy would share the port without a word.
        "enable_reuse_port": False,
        **limits.listener_options(for_everyone=name in (TCP, HTTP)),
        "filter_chains": [{"filters": [manager], **(more or {})}],
        **(first or {}),
    }
    return resources.make(resources.LISTENER, name, content)
