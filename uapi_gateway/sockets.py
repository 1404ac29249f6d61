"""Where the gateway's own processes meet, and how an address is written."""

import errno
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from agentruntime.errors import FailedPrecondition, InvalidArgument
from agentruntime.home import Home

# Before an endpoint that speaks TLS.
TLS_SCHEME = "https://"
_FREE_PORTS = "`agent up --grpc-port 0 --http-port 0` takes free ports"
_IN_USE = f"is already in use by another program; {_FREE_PORTS}"


@dataclass(frozen=True)
class Ports:
    """On which Envoy listens."""

    grpc: int
    http: int


def xds_socket(home: Home) -> Path:
    """The control plane that configures Envoy. Not the control socket: no caller may reach it through Envoy."""
    return home.run / "xds.sock"


def relay_socket(home: Home) -> Path:
    """The relay. Not the control socket: there, a call to an agent could name a service of the gateway."""
    return home.run / "relay.sock"


def pool_link(home: Home) -> Path:
    """Envoy's way to a pool on another machine: it speaks TLS, and knows when certificates change."""
    return home.run / "pool-link.sock"


def http_socket(home: Home) -> Path:
    """The HTTP pages, behind Envoy's HTTP listener."""
    return home.run / "http.sock"


def ejections_pipe(home: Home) -> Path:
    """The named pipe into which Envoy writes which workers it ejects."""
    return home.run / "envoy-ejections"


def system_calls_socket(home: Home) -> Path:
    """Where Envoy takes the connections of workers from the gateway, which says whose they are."""
    return home.run / "calls.sock"


def kernel_socket(home: Home) -> Path:
    """The gateway's answers to system calls. Not the control socket: no agent reaches what is there."""
    return home.run / "kernel.sock"


def inner_socket(home: Home) -> Path:
    """Envoy's door for what the gateway calls on somebody's behalf, and says on whose."""
    return home.run / "inner.sock"


def hold_socket(home: Home) -> Path:
    """Where Envoy itself holds the calls for the relay while the gateway is away."""
    return home.run / "hold.sock"


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """("host", port) of "host:port", "[::1]:port" and both with "https://" before; ("/path", 0) of "unix:/path".

    Raises:
        InvalidArgument: the text is none of these.
    """
    wanted = f"'{endpoint}' is not an endpoint; write host:port, https://host:port or unix:/path"
    if endpoint.startswith("unix:"):
        path = endpoint.removeprefix("unix:")
        if not path.startswith("/") or len(path.encode()) > 107:  # sun_path, unix(7)
            raise InvalidArgument(wanted)
        return path, 0
    host, colon, port = endpoint.removeprefix(TLS_SCHEME).rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise InvalidArgument(wanted)
    printable = host.isprintable() and host.isascii() and " " not in host and "/" not in host
    if not colon or not host or not printable or not port.isascii() or not port.isdigit():
        raise InvalidArgument(wanted)
    if not 0 < int(port) < 65536:
        raise InvalidArgument(wanted)
    return host, int(port)


def join(host: str, port: int) -> str:
    """ "127.0.0.1:80", "[::1]:80"."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind(host: str, port: int, what: str) -> socket.socket:
    """A bound TCP socket that does not listen; port 0 takes a free one.

    Raises:
        FailedPrecondition: another program has the port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        if error.errno not in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
            raise
        why = {
            errno.EADDRINUSE: _IN_USE,
            errno.EACCES: f"may not be opened by this user; {_FREE_PORTS}",
            errno.EADDRNOTAVAIL: "is not an address of this machine; choose another",
        }[error.errno]
        raise FailedPrecondition(f"{what} address {join(host, port)} {why}") from error
    return bound


def bind_unix(path: Path) -> socket.socket:
    """A bound Unix socket for this user alone, that does not listen yet."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound.bind(str(path))
    path.chmod(0o600)
    return bound


@contextmanager
def claimed(host: str, port: int, what: str) -> Iterator[int]:
    """The port, or a free one for 0, kept from other programs meanwhile: afterwards it is another process's to take.

    Raises:
        FailedPrecondition: another program has it.
    """
    with closing(_bind(host, port, what)) as bound:
        # A socket bound with SO_REUSEADDR may share the port until it listens.
        try:
            bound.listen(1)
        except OSError as error:
            raise FailedPrecondition(f"{what} address {join(host, port)} {_IN_USE}") from error
        yield int(bound.getsockname()[1])
