"""`agent login` and `agent logout` at the real provider; what a platform makes of the token is the gateway's test."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentruntime.cli.main import main
from agentruntime.client import target
from agentruntime.errors import Unauthenticated
from agentruntime.home import Home
from agentruntime.oauth2.logins import LoginFile

from tests.agentruntime.client.test_handshake import serving
from tests.certificates import self_signed
from tests.identity_provider import CI_SECRET, IdentityProvider, identity_provider

AGENT = Path(sys.executable).parent / "agent"
ENDPOINT = "127.0.0.1:4567"


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    with identity_provider() as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("UAPI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UAPI_ENDPOINT", ENDPOINT)
    return Home(tmp_path / "home")


@pytest.mark.integration
def test_by_client_credentials(
    provider: IdentityProvider, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(CI_SECRET)
    login = [
        "login",
        "--issuer",
        provider.issuer,
        "--client-id",
        "ci",
        "--client-credentials",
        "--scope",
        "uapi.call",
    ]
    assert main([*login, "--client-secret-file", str(secret), "-o", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["endpoint"] == f"http://{ENDPOINT}"
    assert shown["renewed"] is True
    (kept,) = home.logins.glob("*.json")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert CI_SECRET not in kept.read_text()
    source = target.resolve().token
    assert callable(source)
    assert source().count(".") == 2
    # Not for another endpoint, nor where a credential is given.
    assert target.resolve("127.0.0.1:4568").token == ""
    assert target.resolve(token="own").token == "own"
    secret.write_text("another")
    assert main([*login, "--client-secret-file", str(secret)]) == 26
    assert "invalid_client" in capsys.readouterr().err
    assert main(["logout"]) == 0
    assert target.resolve().token == ""
    assert main(["logout"]) == 15
    with pytest.raises(Unauthenticated, match="nobody is logged in"):
        LoginFile(home.logins, f"http://{ENDPOINT}")()


@pytest.mark.integration
def test_by_device_code(provider: IdentityProvider, home: Home) -> None:
    scopes = [part for scope in ("openid", "offline_access", "uapi.call") for part in ("--scope", scope)]
    argv = [str(AGENT), "login", "--issuer", provider.issuer, "--client-id", "cli", "--resource", "urn:agentruntime"]
    with subprocess.Popen([*argv, *scopes], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        assert command.stderr is not None
        told = command.stderr.readline() + command.stderr.readline()
        code = re.search(r"enter (\S+)", told)
        assert code
        uri = re.search(r"or open (\S+)", told)
        assert uri
        assert code[1] in uri[1]
        provider.approve(uri[1])
        out, err = command.communicate(timeout=60)
    assert command.returncode == 0, err
    assert out == f"Logged in to http://{ENDPOINT} by {provider.issuer}.\n"
    assert callable(target.resolve().token)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "--client-credentials"], "exclude each other"),
        (["--client-credentials"], "belong together"),
        (["--client-secret-file", "f"], "belong together"),
        (["--client-credentials", "--client-secret-file", "f"], "add --issuer"),
        (["--client-credentials", "--client-secret-file", "f", "--provider", "a"], "add --issuer"),
        (["--issuer", "https://a"], "--issuer needs --client-id"),
        (["--issuer", "https://a", "--provider", "a"], "exclude each other"),
        (
            ["--issuer", "http://example.com", "--client-id", "a"],
            "'http://example.com/.well-known/openid-configuration'",
        ),
    ],
)
def test_wrong_usage(home: Home, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(["login", *arguments]) == 13
    assert said in capsys.readouterr().err


def test_a_certificate_that_nobody_vouches_for_is_one_sentence(
    home: Home, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(self_signed(tmp_path, "own", "DNS:localhost")) as address:
        monkeypatch.setenv("UAPI_ENDPOINT", f"https://{address}")
        assert main(["login"]) == 24
    # gRPC writes below Python.
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert "is signed by itself" in said[0]


def test_what_needs_no_login_and_what_is_not_said_in_clear(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    login = ["login", "--issuer", "https://a", "--client-id", "a"]
    monkeypatch.delenv("UAPI_ENDPOINT")
    assert main(login) == 13
    assert "needs no login" in capsys.readouterr().err
    monkeypatch.setenv("UAPI_ENDPOINT", "http://gateway.example.com:50051")
    assert main(login) == 13
    assert "unencrypted" in capsys.readouterr().err
