"""Settings: their sources, and what they refuse."""

from pathlib import Path

import pytest
from agentruntime.certificates import Files
from agentruntime.errors import InvalidArgument
from pydantic import ValidationError

from uapi_gateway.__main__ import read_settings
from uapi_gateway.settings import Settings


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UAPI_GATEWAY_GRPC_PORT", "1234")
    monkeypatch.setenv("UAPI_GATEWAY_DRAIN_S", "2.5")
    monkeypatch.setenv("UAPI_HOME", str(tmp_path))
    settings = read_settings(["--http-port", "0"])
    assert (settings.grpc_port, settings.http_port, settings.drain_s) == (1234, 0, 2.5)
    assert settings.home.root == tmp_path
    assert read_settings(["--grpc-port", "5"]).grpc_port == 5


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_loopback_is_allowed(host: str) -> None:
    Settings(host=host).check()
    assert Settings(host=host).address != "localhost"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1"])
def test_every_other_address_needs_tls_or_a_word(host: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"without TLS.*agent certs init.*--allow-plaintext"):
        Settings(host=host).check()
    Settings(host=host, allow_plaintext=True).check()
    Settings(host=host, tls_cert=tmp_path / "c.pem", tls_key=tmp_path / "k.pem").check()
    assert not Settings(host=host).local


@pytest.mark.parametrize("host", ["example.com", ""])
def test_a_name_is_no_address(host: str) -> None:
    with pytest.raises(InvalidArgument, match="which is no address"):
        Settings(host=host, tls=True).check()


def test_tls_needs_certificates(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="make them with `agent certs init`"):
        Settings(root=tmp_path, tls=True).check()
    own = tmp_path / "own.pem"
    with pytest.raises(InvalidArgument, match="--ca FILE"):
        Settings(root=tmp_path, tls_cert=own, tls_require_client_cert=True).check()
    for given in (
        {"tls_require_client_cert": True},
        {"tls_ca": own},
        {"tls_require_client_cert": True, "tls_ca": own},
    ):
        with pytest.raises(InvalidArgument, match=r"--ca and --require-client-cert .* need --tls"):
            Settings(root=tmp_path, **given).check()
    (tmp_path / "key.pem").touch()
    assert Settings(root=tmp_path, tls_cert=own).sources.server == Files(own, tmp_path / "key.pem")


def test_the_development_authority_vouches_for_callers_only_beside_its_own_certificate(tmp_path: Path) -> None:
    made = tmp_path / "certs"
    own, others = (
        Settings(root=tmp_path, **given).sources for given in ({"tls": True}, {"tls_cert": tmp_path / "c"})
    )
    assert own.server == Files(made / "server.pem", made / "server-key.pem")
    assert (own.callers, others.callers) == (made / "ca.pem", None)
    assert Settings(root=tmp_path).sources.server is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "0.0.0.0"])
def test_nobody_is_let_in_without_a_credential_but_by_name(host: str) -> None:
    assert not Settings(host=host).anonymous_calls
    assert Settings(host=host, anonymous="call").anonymous_calls


@pytest.mark.parametrize("wrong", [{"grpc_port": -1}, {"http_port": 65536}, {"envoy_concurrency": 0}])
def test_values_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_where_conversations_are_kept(tmp_path: Path) -> None:
    assert Settings(root=tmp_path).conversations == f"sqlite:///{tmp_path}/state/conversations.db"
    Settings(root=tmp_path, conversations_url="postgresql://me:secret@host/name").check()
    with pytest.raises(InvalidArgument, match="UAPI_GATEWAY_CONVERSATIONS_URL") as caught:
        Settings(root=tmp_path, conversations_url="mysql://me:secret@host/name").check()
    assert "secret" not in caught.value.message
