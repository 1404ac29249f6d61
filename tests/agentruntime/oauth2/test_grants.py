import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentruntime import errors, oauth2
from agentruntime.oauth2 import grants
from agentruntime.oauth2.discovery import Endpoints, discover, endpoints
from agentruntime.oauth2.exchange import check_url
from agentruntime.oauth2.logins import Login, LoginFile

from tests.identity_provider import CI_SECRET, IdentityProvider, identity_provider

AT = Endpoints("http://127.0.0.1:1", token="http://127.0.0.1:1/token")


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    with identity_provider(access_token_s=4) as running:
        yield running


@pytest.mark.parametrize(
    "url",
    [
        "http://login.example.com",
        "ftp://127.0.0.1",
        "login.example.com",
        "https://",
        "https://u:p@h/",
        "https://h/\ud800",
        "",
    ],
)
def test_only_https_is_spoken_to_others(url: str) -> None:
    with pytest.raises(ValueError, match="https"):
        check_url(url)
    assert check_url("https://login.example.com/a") == "https://login.example.com/a"
    assert check_url("http://[::1]:8080/a") == "http://[::1]:8080/a"


def test_a_provider_speaks_for_itself_only() -> None:
    with pytest.raises(errors.Unavailable, match="calls itself 'https://b'"):
        endpoints("https://a", {"issuer": "https://b"})
    with pytest.raises(errors.Unavailable, match="jwks_uri: 'http://c' is not https"):
        endpoints("https://a", {"issuer": "https://a", "jwks_uri": "http://c"})
    assert endpoints("https://a", {"issuer": "https://a"}).authentication_methods == ("client_secret_basic",)


@pytest.mark.parametrize(
    ("lifetime_s", "now", "stale"),
    [(600, 560, False), (600, 571, True), (4, 2.9, False), (4, 3.1, True), (4, 9, True)],
)
def test_when_a_token_is_renewed(lifetime_s: float, now: float, stale: bool) -> None:
    assert grants.Token("t", 0, lifetime_s).stale(now) is stale


def test_neither_or_both_secrets_are_refused() -> None:
    with pytest.raises(errors.InvalidArgument, match="either"):
        oauth2.client_credentials("https://a", "chat")
    with pytest.raises(errors.InvalidArgument, match="either"):
        oauth2.client_credentials("https://a", "chat", secret="a", secret_file="b")


@pytest.mark.integration
def test_client_credentials(provider: IdentityProvider, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{CI_SECRET}\n")
    source = oauth2.client_credentials(provider.issuer, "ci", secret_file=secret, scope="uapi.call:alpha")
    first = source()
    assert source() == first
    assert CI_SECRET not in repr(grants.with_secret(grants.OAuthClient("ci"), secret))
    secret.write_text("another")
    refused = oauth2.client_credentials(provider.issuer, "ci", secret_file=secret)
    with pytest.raises(errors.Unauthenticated, match="invalid_client"):
        refused()
    with pytest.raises(errors.Unavailable, match="does not answer"):
        oauth2.client_credentials("http://127.0.0.1:1", "ci", secret="a")()


@pytest.mark.integration
def test_a_login_by_device_code_is_renewed_and_ends(provider: IdentityProvider, tmp_path: Path) -> None:
    at = discover(provider.issuer)
    client = grants.OAuthClient("cli", scope="openid offline_access uapi.call", resource="urn:agentruntime")
    code = grants.device_code(at, client)
    # The user agrees between the first time that is asked and the second.
    asked = itertools.count()

    def sleep(_s: float) -> None:
        if next(asked):
            provider.approve(code.complete_uri)

    token = grants.by_device_code(at, client, code, sleep=sleep)
    logins = tmp_path / "logins"
    file = LoginFile(logins, "https://gateway:50051")
    file.keep(
        Login(file.endpoint, provider.issuer, "cli", token.access_token, token.obtained_at, token.expires_at,
              token.refresh_token, scope=client.scope, resource=client.resource)
    )  # fmt: skip
    (kept,) = logins.glob("*.json")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert LoginFile(logins, file.endpoint)() == token.access_token
    assert token.access_token not in repr(file.read())
    # Four seconds long: renewed in the last of them.
    while not file.read().token.stale(time.time()):
        time.sleep(0.05)
    renewed = file()
    assert renewed != token.access_token
    # The others that share the file see it.
    assert LoginFile(logins, file.endpoint)() == renewed
    provider.stop()
    assert file() == renewed
    while time.time() < file.read().expires_at:
        time.sleep(0.05)
    with pytest.raises(errors.Unavailable, match="does not answer"):
        file()
    # A provider that has forgotten it.
    provider.start()
    with pytest.raises(errors.Unauthenticated, match="use `agent login`"):
        file()
    file.forget()
    assert not list(logins.iterdir())
    with pytest.raises(errors.Unauthenticated, match="nobody is logged in"):
        file()
