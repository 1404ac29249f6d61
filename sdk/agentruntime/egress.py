"""Ways out of an isolated network: what a worker, its driver and the gateway have to agree on.

For each "host:port" of an agent's `permissions.egress`, a worker listens in its own network: on a loopback address
that stands for that host name there, on that port. It hands the listening sockets to the gateway, which takes the
connections and carries them to the real host, if it finds that the agent may.

Handing over is a connection to a Unix socket of type SOCK_SEQPACKET: of each listening socket one message, the
"host:port" as text with the descriptor as SCM_RIGHTS. Nothing is answered. When the connection ends, the gateway lets
go of the sockets; when the gateway ends, the worker connects again.
"""

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agentruntime.sections import egress_target

# Of the gateway's socket, in the directory of those that the platform has for a worker.
SOCKET_NAME = "e"
# Of a message: a host name has at most 253 characters (RFC 1035), a port 5.
LONGEST_BYTES = 512
_LOCALHOST = "localhost"
_LOCALHOST_ADDRESS = "127.0.0.1"
# Host names get the addresses after this one, all of them loopback ones (RFC 1122, 3.2.1.3), and far from 127.0.0.1,
# where an agent's own servers listen.
_BEFORE_FIRST = ipaddress.IPv4Address("127.1.0.0")


@dataclass(frozen=True)
class Way:
    """One way out."""

    # As it is permitted: "api.example.com:443".
    entry: str
    host: str
    port: int
    # In the worker's network, on which connections to it are taken.
    address: str

    @property
    def is_literal(self) -> bool:
        """Whether the host is an address that the loopback interface does not have by itself."""
        return _is_address(self.host) and not ipaddress.ip_address(self.address).is_loopback


def ways(entries: Sequence[str]) -> list[Way]:
    """The ways out for the entries of `permissions.egress`, of which several may have one host."""
    targets = [(entry, *egress_target(entry)) for entry in entries]
    names = list(dict.fromkeys(host for _, host, _ in targets))
    found: dict[tuple[str, int], Way] = {}
    for entry, host, port in targets:
        address = _address(host, names.index(host) + 1)
        found.setdefault((address, port), Way(entry, host, port, address))
    return list(found.values())


def hosts(entries: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, address) of each host name that is to be found: what /etc/hosts says beside localhost; hosts(5)."""
    names = {way.host: way.address for way in ways(entries)}
    yield from (
        (name, address) for name, address in names.items() if not _is_address(name) and address != _LOCALHOST_ADDRESS
    )


def hosts_file(entries: Sequence[str]) -> str:
    """The content of /etc/hosts."""
    lines = [(_LOCALHOST, _LOCALHOST_ADDRESS), *hosts(entries)]
    return "".join(f"{address}\t{name}\n" for name, address in lines)


def _is_address(host: str) -> bool:
    """Whether it is no name, however it is written: ::0 is ::."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _address(host: str, number: int) -> str:
    if host == _LOCALHOST:
        return _LOCALHOST_ADDRESS
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return str(_BEFORE_FIRST + number)
