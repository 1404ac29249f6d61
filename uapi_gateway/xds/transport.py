"""TLS in Envoy: certificates as secrets of their own, and the transport sockets that name them.

A secret that changes is used by the next connection, and no other connection hears of it. A listener, which cannot be
changed without cutting connections, holds the secrets' names only.
"""

import ipaddress
from dataclasses import dataclass
from typing import Any

from agentruntime.certificates import Pair

from uapi_gateway.xds import resources
from uapi_gateway.xds.resources import Resource, typed

# Of the gateway's ports, and whose certificates of callers it takes.
SERVER = "server"
CALLERS = "callers"
# By which the gateway is known where it calls, and whose certificates it takes there.
GATEWAY = "gateway"
AUTHORITY = "authority"
_OLDEST = {"tls_minimum_protocol_version": "TLSv1_2"}
_TLS = "envoy.transport_sockets.tls"


@dataclass(frozen=True)
class Inbound:
    """TLS of a listener."""

    # Callers may show a certificate, which is verified.
    verifies: bool = False
    # They must.
    requires: bool = False


def certificate_secret(name: str, pair: Pair) -> Resource:
    """A certificate with its key."""
    content = {
        "name": name,
        "tls_certificate": {
            "certificate_chain": {"inline_string": pair.chain.decode()},
            "private_key": {"inline_string": pair.key.decode()},
        },
    }
    return resources.make(resources.SECRET, name, content)


def authority_secret(name: str, authorities: bytes) -> Resource:
    """Those whose certificates are taken."""
    content = {"name": name, "validation_context": {"trusted_ca": {"inline_string": authorities.decode()}}}
    return resources.make(resources.SECRET, name, content)


def downstream(inbound: Inbound, protocols: list[str]) -> dict[str, Any]:
    """The transport socket of a listener.

    Args:
        inbound: what is asked of callers.
        protocols: offered by ALPN, the best first.
    """
    common: dict[str, Any] = {
        "tls_params": _OLDEST,
        "alpn_protocols": protocols,
        "tls_certificate_sds_secret_configs": [_by_ads(SERVER)],
    }
    if inbound.verifies:
        common["validation_context_sds_secret_config"] = _by_ads(CALLERS)
    context = typed(
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context=common,
        require_client_certificate=inbound.requires,
    )
    return {"name": _TLS, "typed_config": context}


def upstream(host: str, *, known: bool) -> dict[str, Any]:
    """The transport socket towards a host, whose certificate must be for it.

    Args:
        host: a name or an address.
        known: the gateway shows its own certificate.
    """
    try:
        kind = "IP_ADDRESS" if ipaddress.ip_address(host) else ""
    except ValueError:
        kind = "DNS"
    common: dict[str, Any] = {
        "tls_params": _OLDEST,
        "alpn_protocols": ["h2"],
        "combined_validation_context": {
            "default_validation_context": {
                "match_typed_subject_alt_names": [{"san_type": kind, "matcher": {"exact": host}}]
            },
            "validation_context_sds_secret_config": _by_ads(AUTHORITY),
        },
    }
    if known:
        common["tls_certificate_sds_secret_configs"] = [_by_ads(GATEWAY)]
    named = {"sni": host} if kind == "DNS" else {}
    context = typed(
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", common_tls_context=common, **named
    )
    return {"name": _TLS, "typed_config": context}


def _by_ads(name: str) -> dict[str, Any]:
    return {"name": name, "sds_config": {"ads": {}, "resource_api_version": "V3"}}
