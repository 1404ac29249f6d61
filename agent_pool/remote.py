"""The pool's door to a gateway on another machine: TCP with mutual TLS, open to the gateway alone."""

import time
from pathlib import Path

import grpc
from agentruntime import certificates, log
from agentruntime.certificates import GATEWAY, Files, Pair
from agentruntime.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from agentruntime.home import Home
from agentruntime.interceptors import AioContext
from grpc import aio

from agent_pool.settings import PoolSettings

_log = log.get("agent_pool.remote")


def listen(server: aio.Server, home: Home, settings: PoolSettings) -> int:
    """Has the server listen where the settings say, and returns the port.

    Raises:
        InvalidArgument: that is no address.
        FailedPrecondition: the certificates cannot be used, or the port is taken.
    """
    host, _, port = settings.listen.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidArgument(f"AGENT_POOL_LISTEN is '{settings.listen}'; write host:port")
    cert = settings.tls_cert or home.certs / "pool.pem"
    held = _Held(
        Files(cert, settings.tls_key or certificates.key_beside(cert)), settings.tls_ca or home.certs / "ca.pem"
    )
    credentials = grpc.dynamic_ssl_server_credentials(
        held.renewed(), held.renewed, require_client_authentication=True
    )
    try:
        bound: int = server.add_secure_port(settings.listen, credentials)
    except RuntimeError:
        raise FailedPrecondition(f"the pool cannot listen on {settings.listen}; is the port in use?") from None
    _log.info("pool serves other machines", address=f"{host}:{bound}")
    return bound


def only_the_gateway(context: AioContext) -> None:
    """Refuses callers from other machines that are not the gateway. This machine's come by a socket of this user.

    Raises:
        PermissionDenied: it is another.
    """
    if context.peer().startswith("unix:"):
        return
    if GATEWAY.encode() not in context.auth_context().get("x509_subject_alternative_name", ()):
        raise PermissionDenied(f"the pool takes calls of the gateway alone, whose certificate names {GATEWAY}")


class _Held:
    """A certificate that is read anew for each connection, and kept where the new one is not as it should be."""

    def __init__(self, files: Files, authority: Path) -> None:
        self._files = files
        self._authority = authority
        self._pair: Pair | None = None
        self._last = self.read()

    def read(self) -> grpc.ServerCertificateConfiguration:
        """The certificate as it is now.

        Raises:
            FailedPrecondition: it cannot be used, or has ended while the one before has not.
        """
        pair = certificates.renewed(certificates.read_pair(self._files), self._pair, time.time())
        authority = certificates.read_authorities(self._authority)
        self._pair = pair
        return grpc.ssl_server_certificate_configuration([(pair.key, pair.chain)], authority)

    def renewed(self) -> grpc.ServerCertificateConfiguration:
        """The same for gRPC, which asks at each connection; the one before where the new one cannot be used."""
        try:
            self._last = self.read()
        except FailedPrecondition as error:
            _log.error("a new certificate is refused, the old one stays", error=error.message)
        return self._last
