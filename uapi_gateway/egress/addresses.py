"""Which addresses a name may stand for: none of this machine and its surroundings, unless an operator said so.

What a name stands for is its owner's to say, from one moment to the next. So it is the address connected to that is
looked at, not the name, or agent.yaml could name a host that turns out to be this one ("DNS rebinding").
"""

import ipaddress
import socket
from ipaddress import IPv4Address, IPv6Address

# Well-known prefix of NAT64, RFC 6052: the last 32 bits are an IPv4 address.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def closed(address: str) -> str:
    """Why only an operator may open the way to an address: "a loopback address"; "" if agent.yaml may.

    Args:
        address: as getaddrinfo(3) has it, with the zone of a link-local one or without.
    """
    return next(filter(None, map(_closed, _meant(ipaddress.ip_address(address)))), "")


def is_own(address: str) -> bool:
    """Whether this machine has the address. A socket can be bound to its own ones only; ip(7)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as any_socket:
        try:
            any_socket.bind((address, 0))
        except OSError:
            return False
    return True


def _closed(address: IPv4Address | IPv6Address) -> str:
    if address.is_loopback:
        return "a loopback address"
    # Cloud providers tell secrets of the machine there.
    if address.is_link_local:
        return "a link-local address"
    # 0.0.0.0/8 is "this host on this network" (RFC 1122), and Linux takes 0.0.0.0 for loopback.
    if address.is_unspecified or (address.version == 4 and address in ipaddress.IPv4Network("0.0.0.0/8")):
        return "no host's address"
    if address.is_multicast or address == IPv4Address("255.255.255.255"):
        return "many hosts' address"
    return ""


def _meant(address: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    """The address, and an IPv4 address that it carries."""
    if isinstance(address, IPv4Address):
        return [address]
    found: list[IPv4Address | IPv6Address | None] = [address, address.ipv4_mapped, address.sixtofour]
    if address in _NAT64 or int(address) >> 32 == 0:  # the latter "IPv4-compatible", RFC 4291
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in found if each is not None]
