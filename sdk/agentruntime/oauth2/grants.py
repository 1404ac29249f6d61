"""Access tokens from an identity provider: client credentials (RFC 6749, 4.4), device code (RFC 8628), refreshed."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

from agentruntime.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated, Unavailable
from agentruntime.oauth2.discovery import Endpoints
from agentruntime.oauth2.exchange import ask

# Where the provider does not say: RFC 8628, 3.2, and what most providers use.
_DEVICE_INTERVAL_S = 5.0
_SLOWER_BY_S = 5.0
_LIFETIME_S = 300.0
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


@dataclass(frozen=True)
class Token:
    """An access token, and what gets the next one."""

    access_token: str = field(repr=False)
    # Seconds since the epoch.
    obtained_at: float
    expires_at: float
    # "" for none.
    refresh_token: str = field(default="", repr=False)

    def stale(self, now: float) -> bool:
        """Whether it is time for another: half a minute before its end, or a quarter of its life if that is short."""
        return now > self.expires_at - min(30.0, (self.expires_at - self.obtained_at) / 4)


@dataclass(frozen=True)
class OAuthClient:
    """A client that is known to a provider, and what it asks for."""

    client_id: str
    # "" for a client without one, such as a command line.
    secret: str = field(default="", repr=False)
    scope: str = ""
    # Whom the token is for: RFC 8707's parameter, and that of providers who call it otherwise.
    resource: str = ""
    audience: str = ""
    ca_file: str = ""

    def wishes(self) -> dict[str, str]:
        """What is asked for, as a form's fields."""
        return {
            name: value
            for name, value in (("scope", self.scope), ("resource", self.resource), ("audience", self.audience))
            if value
        }


def with_secret(client: OAuthClient, file: Path) -> OAuthClient:
    """The client with its secret, out of a file.

    Raises:
        InvalidArgument: the file cannot be read, or is empty.
    """
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"the client's secret cannot be read from {file}: {error}") from None
    if not secret:
        raise InvalidArgument(f"{file} is empty; it must hold the client's secret")
    return replace(client, secret=secret)


@dataclass(frozen=True)
class DeviceCode:
    """What a user must be shown, and what is asked with meanwhile."""

    device_code: str = field(repr=False)
    user_code: str
    verification_uri: str
    # With the code in it; "" if the provider has none.
    complete_uri: str
    expires_in_s: float
    interval_s: float


def by_client_credentials(at: Endpoints, client: OAuthClient, now: float) -> Token:
    """A token for the client itself. Blocks.

    Raises:
        FailedPrecondition: the provider has no token endpoint.
        Unauthenticated: it refuses the client.
        PermissionDenied: it refuses what was asked for.
        Unavailable: it does not answer.
    """
    return _token(at, client, {"grant_type": "client_credentials", **client.wishes()}, now)


def refreshed(at: Endpoints, client: OAuthClient, token: Token, now: float) -> Token:
    """The next token, by the refresh token of one. Blocks.

    Raises:
        As `by_client_credentials`.
    """
    form = {"grant_type": "refresh_token", "refresh_token": token.refresh_token, **client.wishes()}
    after = _token(at, client, form, now)
    # Some providers give a new refresh token with every one, others never.
    return after if after.refresh_token else Token(after.access_token, now, after.expires_at, token.refresh_token)


def device_code(at: Endpoints, client: OAuthClient) -> DeviceCode:
    """Begins a login by device code. Blocks.

    Raises:
        FailedPrecondition: the provider does not offer it.
        Unauthenticated, PermissionDenied, Unavailable: as `by_client_credentials`.
    """
    if not at.device_authorization:
        raise FailedPrecondition(
            f"{at.issuer} does not offer device codes; use --client-credentials", reason="NO_DEVICE_CODE"
        )
    content = _asked(at, client, at.device_authorization, client.wishes())
    try:
        return DeviceCode(
            str(content["device_code"]),
            str(content["user_code"]),
            str(content["verification_uri"]),
            str(content.get("verification_uri_complete", "")),
            float(content["expires_in"]),
            float(content.get("interval", _DEVICE_INTERVAL_S)),
        )
    except (KeyError, TypeError, ValueError):
        raise Unavailable(f"{at.issuer} answers without a device code", reason="PROVIDER_UNAVAILABLE") from None


def by_device_code(
    at: Endpoints, client: OAuthClient, code: DeviceCode, *, sleep: Callable[[float], None] = time.sleep
) -> Token:
    """Waits until the user has agreed. Blocks for as long as the code lives.

    Raises:
        PermissionDenied: the user, or the provider, said no.
        Unauthenticated: nobody said anything.
        Unavailable: as `by_client_credentials`.
    """
    form = {"grant_type": _DEVICE_GRANT, "device_code": code.device_code, **client.wishes()}
    form.pop("scope", None)
    interval_s = code.interval_s
    for _ in _until(time.monotonic() + code.expires_in_s):
        sleep(interval_s)
        try:
            return _token(at, client, form, time.time())
        except _Pending as error:
            interval_s += _SLOWER_BY_S if error.slow_down else 0
    raise Unauthenticated("nobody approved the code in time; log in again", reason="LOGIN_EXPIRED")


class _Pending(Exception):
    def __init__(self, slow_down: bool) -> None:
        self.slow_down = slow_down


def _until(deadline: float) -> Iterator[None]:
    while time.monotonic() < deadline:
        yield


def _token(at: Endpoints, client: OAuthClient, form: dict[str, str], now: float) -> Token:
    if not at.token:
        raise FailedPrecondition(f"{at.issuer} has no token endpoint", reason="NO_TOKEN_ENDPOINT")
    content = _asked(at, client, at.token, form)
    access_token = content.get("access_token")
    if not isinstance(access_token, str) or str(content.get("token_type", "")).lower() != "bearer":
        raise Unavailable(f"{at.issuer} answers without a bearer token", reason="PROVIDER_UNAVAILABLE")
    lifetime = content.get("expires_in")
    lifetime_s = float(lifetime) if isinstance(lifetime, int | float | str) else _LIFETIME_S
    return Token(access_token, now, now + lifetime_s, str(content.get("refresh_token") or ""))


def _asked(at: Endpoints, client: OAuthClient, url: str, form: dict[str, str]) -> dict[str, Any]:
    """What the provider answers to a client that shows who it is, as RFC 6749, 2.3.1, has it."""
    basic = None
    if not client.secret:
        form = {**form, "client_id": client.client_id}
    elif "client_secret_basic" in at.authentication_methods:
        basic = (quote_plus(client.client_id), quote_plus(client.secret))
    else:
        form = {**form, "client_id": client.client_id, "client_secret": client.secret}
    answer = ask(url, form, basic=basic, ca_file=client.ca_file)
    if answer.status == 200:
        return answer.content
    name = str(answer.content.get("error", f"HTTP {answer.status}"))
    if name in ("authorization_pending", "slow_down"):
        raise _Pending(name == "slow_down")
    said = " ".join(str(answer.content.get("error_description") or "").split())[:300]
    message = f"{at.issuer} refuses: {name}" + (f" ({said})" if said else "")
    if name in ("invalid_client", "invalid_grant", "expired_token", "unauthorized_client"):
        raise Unauthenticated(message, reason="LOGIN_REFUSED")
    if answer.status >= 500:
        raise Unavailable(message, reason="PROVIDER_UNAVAILABLE")
    raise PermissionDenied(message, reason="LOGIN_REFUSED")
