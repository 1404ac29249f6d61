"""Access tokens of identity providers, for programs and agents that are OAuth2 clients."""

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agentruntime.errors import InvalidArgument, Unavailable

if TYPE_CHECKING:
    from agentruntime.oauth2.grants import OAuthClient, Token

__all__ = ["ClientCredentials", "client_credentials"]


def client_credentials(
    issuer: str,
    client_id: str,
    *,
    secret: str = "",
    secret_file: str | Path = "",
    scope: str = "",
    resource: str = "",
    audience: str = "",
    ca_file: str | Path = "",
) -> "ClientCredentials":
    """A source of access tokens that are issued to a client by its own credentials (RFC 6749, section 4.4).

    Called, it gives a token that is valid now: `Client(endpoint, token=client_credentials(…))`. Nothing is asked of
    the provider before that.

    Args:
        issuer: "https://login.example.com", exactly as the provider writes it.
        client_id: as the provider knows it.
        secret: of the client; or
        secret_file: where it is, such as /run/secrets/NAME. Read whenever a token is asked for.
        scope: what to ask for, separated by blanks: "uapi.call:my-agent".
        resource: whom the token is for (RFC 8707), where the provider wants to be told so; or
        audience: the same, for providers that call it that.
        ca_file: PEM of the authorities that the provider's certificate is checked against; the system's if empty.

    Raises:
        InvalidArgument: neither or both of secret and secret_file.
    """
    if bool(secret) == bool(secret_file):
        raise InvalidArgument("give either the client's secret or the file that it is in")
    from agentruntime.oauth2.grants import OAuthClient  # noqa: PLC0415 — because requests takes its time to import

    client = OAuthClient(client_id, secret, scope, resource, audience, str(ca_file))
    return ClientCredentials(issuer, client, Path(secret_file) if secret_file else None)


class ClientCredentials:
    """Gives access tokens by client credentials, each for as long as it is good. Threads may share it."""

    def __init__(self, issuer: str, client: "OAuthClient", secret_file: Path | None) -> None:
        self._issuer = issuer
        self._client = client
        self._secret_file = secret_file
        self._token: Token | None = None
        self._lock = threading.Lock()

    def __call__(self) -> str:
        """The token. Blocks where a new one is asked for.

        Raises:
            FailedPrecondition, PermissionDenied, Unauthenticated, Unavailable: the provider gives none; says why.
            InvalidArgument: the secret's file cannot be read.
        """
        with self._lock:
            now = time.time()
            if self._token is None or self._token.stale(now):
                try:
                    self._token = self._asked(now)
                except Unavailable:
                    # It is asked for some time before the old one ends.
                    if self._token is None or now >= self._token.expires_at:
                        raise
            return self._token.access_token

    def _asked(self, now: float) -> "Token":
        from agentruntime.oauth2 import grants  # noqa: PLC0415 — as above
        from agentruntime.oauth2.discovery import discover  # noqa: PLC0415 — as above

        client = self._client
        if self._secret_file:
            client = grants.with_secret(client, self._secret_file)
        return grants.by_client_credentials(discover(self._issuer, ca_file=client.ca_file), client, now)
