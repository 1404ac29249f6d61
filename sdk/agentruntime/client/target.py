"""Where a client connects, and with which credential, by its arguments, the environment and the runtime directory."""

import ipaddress
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from agentruntime import processes
from agentruntime.config import RuntimeConfig
from agentruntime.errors import InvalidArgument
from agentruntime.home import Home
from agentruntime.oauth2.logins import LoginFile

DEFAULT_ENDPOINT = "localhost:50051"
_ANYWHERE = "0.0.0.0"  # noqa: S104 — compared, not bound
# A credential, or what gives the one that is good now, which may block.
TokenSource = str | Callable[[], str]
_HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class Target:
    """One gateway, as a channel needs it."""

    # As gRPC names it: "localhost:50051", "unix:/path".
    address: str
    # TLS.
    secure: bool
    # On this machine.
    local: bool
    # The caller's credential; "" for none.
    token: TokenSource
    # For calls that bring no deadline of their own.
    timeout_s: float
    # Files in PEM, "" for none: whose certificates are trusted (else the authorities that gRPC brings along), and the
    # caller's own certificate with its key.
    ca: str = ""
    cert: str = ""
    key: str = ""


def resolve(
    endpoint: str | None = None,
    token: TokenSource | None = None,
    timeout_s: float | None = None,
    *,
    ca: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    config: RuntimeConfig | None = None,
    home: Home | None = None,
) -> Target:
    """The target that arguments, environment and runtime directory name, in that order.

    Without an endpoint it is the platform that `agent up` started from this user's runtime directory, else
    `localhost:50051`. Without a token it is that of `agent login` to this endpoint, else the runtime directory's, but
    only towards that directory's own gateway: anybody may listen on a port of this machine. Its socket needs none.
    TLS is spoken to every other machine, unless the endpoint begins with `http://`; a token then is refused, for it
    would cross the network readable. To this one it is spoken where the endpoint begins with `https://`, or the
    runtime directory's own gateway listens there and speaks it; that gateway's authority is trusted without being
    named.

    Raises:
        InvalidArgument: the endpoint, the timeout or an environment variable cannot be read, or the token not sent.
    """
    config = config or RuntimeConfig.from_env()
    home = home or Home.default()
    given = endpoint or config.uapi.endpoint
    if given is None:
        runs = home.supervisor_file.exists() and home.gateway_socket.exists()
        given = f"unix:{home.gateway_socket}" if runs else DEFAULT_ENDPOINT
    address, secure, local = _parse(given)
    own = token if token is not None else config.uapi.auth_token
    if isinstance(own, str):
        own = _sendable(own, "given to the client" if token is not None else "of --api-key or UAPI_AUTH_TOKEN")
    if own and not secure and not local:
        raise InvalidArgument(
            f"a token would reach {given} unencrypted; use https://{address}", reason="INVALID_ENDPOINT"
        )
    gateway = _own_gateway(address, home)
    if gateway is not None:
        secure |= gateway.tls and "://" not in given
        # Over TLS its certificate says who it is, by the name that was given.
        address = address if gateway.tls and secure else gateway.address
    if own is None:
        login = LoginFile(home.logins, written(address, secure))
        by_socket = address.startswith("unix:")
        # What does not answer as it would, over TLS, may be another.
        itself = gateway is not None and (secure or not gateway.tls)
        own = (
            login
            if login.exists()
            else _sendable(home.token(), f"in {home.token_file}")
            if itself and not by_socket
            else ""
        )
    wait_s = config.uapi.timeout_s if timeout_s is None else timeout_s
    if not wait_s > 0:
        raise InvalidArgument(f"a timeout of {wait_s:g} seconds leaves no time for an answer; use a positive number")
    trusted = ca or config.uapi.tls_ca or (gateway.ca if gateway else "")
    files = cert or config.uapi.tls_cert or "", key or config.uapi.tls_key or ""
    if bool(files[0]) != bool(files[1]):
        raise InvalidArgument(
            "a certificate and its key belong together; give both, by --cert and --key, "
            "or UAPI_TLS_CERT and UAPI_TLS_KEY"
        )
    target = Target(address, secure, local, own, wait_s)
    return replace(target, ca=trusted, cert=files[0], key=files[1]) if secure else target


def _sendable(token: str, origin: str) -> str:
    """A token without the white space around it, which a file leaves there."""
    token = token.strip()
    if token.isascii() and token.isprintable():
        return token
    raise InvalidArgument(
        f"the token {origin} has line breaks or other characters that no token has; is it the whole key, and no more?"
    )


def written(address: str, secure: bool) -> str:
    """An endpoint as logins are kept by it."""
    return address if address.startswith("unix:") else f"{'https' if secure else 'http'}://{address}"


@dataclass(frozen=True)
class _Gateway:
    """The runtime directory's own gateway."""

    # As it writes it itself.
    address: str
    tls: bool = False
    # Of its certificate, if it is one of the runtime directory's own authority.
    ca: str = ""


def _own_gateway(address: str, home: Home) -> _Gateway | None:
    """The runtime directory's own gateway, if it is what listens at an address."""
    if address == f"unix:{home.gateway_socket}":
        return _Gateway(address)
    try:
        supervisor = json.loads(home.supervisor_file.read_text())
        announced = json.loads(home.gateway_file.read_text())
        gateway = str(announced["grpc_address"])
        lives = processes.alive(int(supervisor["pid"]), float(supervisor["start_time"]))
        tls = announced.get("tls")
        own = tls is not None and Path(tls["cert"]).is_relative_to(home.certs)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    host, _, port = gateway.rpartition(":")
    # `localhost` may be ::1, where somebody else may listen on the same port.
    reached = {gateway, f"127.0.0.1:{port}"} if host == _ANYWHERE else {gateway}
    if address == f"localhost:{port}" and f"127.0.0.1:{port}" in reached:
        address = f"127.0.0.1:{port}"
    if not lives or address not in reached:
        return None
    return _Gateway(address, tls is not None, str(home.certs / "ca.pem") if own else "")


def _parse(endpoint: str) -> tuple[str, bool, bool]:
    """Address, TLS, local."""
    if endpoint.startswith("unix:") and len(endpoint) > len("unix:"):
        return endpoint, False, True
    scheme, found, rest = endpoint.rpartition("://")
    match = _HOST_AND_PORT.fullmatch(rest.rstrip("/"))
    if match is None or scheme not in (("http", "https") if found else ("",)) or not 0 < int(match["port"]) < 2**16:
        raise InvalidArgument(
            f"'{endpoint}' is not an endpoint; write host:port, like localhost:50051, or unix:/path",
            reason="INVALID_ENDPOINT",
        )
    local = _is_loopback(match["host"].strip("[]"))
    return match[0], scheme == "https" or (not found and not local), local


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
