"""How the gateway connects to agents outside: in plain text, or over TLS with its own certificate shown."""

import ssl
from typing import Any

import grpc
from agentruntime.errors import FailedPrecondition
from grpc import aio

from uapi_gateway.sockets import TLS_SCHEME, split_endpoint
from uapi_gateway.tls import Certificates

Options = list[tuple[str, Any]]


class Outward:
    """Channels and sockets to agents outside, with the certificates as they are now."""

    def __init__(self, held: Certificates | None = None) -> None:
        self._held = held

    @property
    def shows_own(self) -> bool:
        """The gateway has a certificate by which it is known."""
        return self._held is not None and self._held.own is not None

    def check(self) -> None:
        """Refuses TLS to agents outside where nobody could say whose certificate is right.

        Raises:
            FailedPrecondition: the gateway knows no authority.
        """
        if self._held is None or not self._held.authority:
            raise FailedPrecondition(
                "the gateway has no authority by which to verify an https endpoint; make one with `agent certs init` "
                "or name yours in UAPI_GATEWAY_CLIENT_CA, and start the platform anew"
            )

    def channel(self, given: str, dialled: str, options: Options) -> aio.Channel:
        """A channel to an agent.

        Args:
            given: its endpoint as it was registered; its host is what the certificate must be for.
            dialled: the same with its host looked up.
            options: of gRPC.
        """
        address = dialled.removeprefix(TLS_SCHEME)
        target = address if address.startswith("unix:") else f"dns:///{address}"
        if not given.startswith(TLS_SCHEME):
            return aio.insecure_channel(target, options=options)
        self.check()
        assert self._held is not None
        own = self._held.own
        credentials = grpc.ssl_channel_credentials(
            self._held.authority, own.key if own else None, own.chain if own else None
        )
        named = ("grpc.ssl_target_name_override", split_endpoint(given)[0])
        return aio.secure_channel(target, credentials, options=[*options, named])

    def context(self, protocol: str) -> ssl.SSLContext:
        """For a connection that speaks a protocol, as ALPN calls it, over TLS.

        Raises:
            FailedPrecondition: the gateway knows no authority.
            OSError: its own certificate cannot be read just now.
        """
        self.check()
        assert self._held is not None
        context = ssl.create_default_context(cadata=self._held.authority.decode())
        if own := self._held.own_files:
            context.load_cert_chain(own.cert, own.key)
        context.set_alpn_protocols([protocol])
        return context
