"""Which addresses a name may stand for: none of this machine and its surroundings, unless an operator said so.

What a name stands for is its owner's to say, from one moment to the next. So it is the address connected to that is
looked at, not the name, or agent.yaml could name a host that turns out to be this one ("DNS rebinding").
"""

import ipaddress
import time
from ipaddress import IPv4Address, IPv6Address

import psutil

# The last 32 bits are an IPv4 address: NAT64 (RFC 6052), SIIT (RFC 2765) and "IPv4-compatible" (RFC 4291).
_LAST_BITS = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::ffff:0:0:0/96", "::/96")))
# A network's own NAT64 (RFC 8215), which may put the IPv4 address in any of the places of RFC 6052: these bytes.
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
_PLACES = ((6, 7, 9, 10), (7, 9, 10, 11), (9, 10, 11, 12), (12, 13, 14, 15))
# Where clouds tell secrets of the machine beside the link-local address, as their manuals have it: AWS and Google by
# IPv6, Alibaba.
_METADATA = tuple(map(ipaddress.ip_address, ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200")))
# "This host on this network", RFC 1122; Linux takes 0.0.0.0 for loopback.
_NO_HOST = ipaddress.IPv4Network("0.0.0.0/8")
# Asking for all interfaces takes about a tenth of a millisecond.
_KEPT_S = 1.0


def closed(address: str) -> str:
    """Why only an operator may open the way to an address: "a loopback address"; "" if agent.yaml may.

    Args:
        address: as getaddrinfo(3) has it, with the zone of a link-local one or without.
    """
    return next(filter(None, map(_closed, _meant(_plain(address)))), "")


def near(address: str) -> str:
    """The same, or "an address of this machine"."""
    return closed(address) or ("an address of this machine" if is_own(address) else "")


def is_own(address: str) -> bool:
    """Whether this machine has the address, or an IPv4 address that it carries, on one of its interfaces."""
    return any(meant.is_loopback or meant in _interfaces.own() for meant in _meant(_plain(address)))


class _Interfaces:
    """The addresses of this machine, which are asked for again after a while.

    Not found out by binding a socket: that may go for any address (net.ipv4.ip_nonlocal_bind, ip(7)).
    """

    def __init__(self) -> None:
        self._own: frozenset[IPv4Address | IPv6Address] = frozenset()
        self._asked_at = float("-inf")

    def own(self) -> frozenset[IPv4Address | IPv6Address]:
        now = time.monotonic()
        if now - self._asked_at > _KEPT_S:
            found = (each.address for listed in psutil.net_if_addrs().values() for each in listed)
            self._own = frozenset(_plain(address) for address in found if _is_ip(address))
            self._asked_at = now
        return self._own


_interfaces = _Interfaces()


def _is_ip(address: str) -> bool:
    """Not that of a network card."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def _plain(address: str) -> IPv4Address | IPv6Address:
    """Without a zone."""
    return ipaddress.ip_address(address.partition("%")[0])


def _closed(address: IPv4Address | IPv6Address) -> str:
    if address.is_loopback:
        return "a loopback address"
    # Cloud providers tell secrets of the machine there.
    if address.is_link_local:
        return "a link-local address"
    if address in _METADATA:
        return "the address of a cloud's metadata"
    if address.is_unspecified or address in _NO_HOST:
        return "no host's address"
    if address.is_multicast or address == IPv4Address("255.255.255.255"):
        return "many hosts' address"
    return ""


def _meant(address: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    """The address, and an IPv4 address that it carries."""
    if isinstance(address, IPv4Address):
        return [address]
    found: list[IPv4Address | IPv6Address | None] = [address, address.ipv4_mapped, address.sixtofour]
    if any(address in network for network in _LAST_BITS):
        found.append(IPv4Address(address.packed[-4:]))
    if address in _LOCAL_NAT64:
        carried = (IPv4Address(bytes(address.packed[at] for at in places)) for places in _PLACES)
        # What is none there: the address is in another place.
        found += [each for each in carried if each not in _NO_HOST]
    return [each for each in found if each is not None]
