"""Settings: their sources, and what they refuse."""

from pathlib import Path

import pytest
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


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", ""])
def test_every_other_address_needs_tls_first(host: str) -> None:
    with pytest.raises(InvalidArgument, match="TLS and authentication first"):
        Settings(host=host).check()


@pytest.mark.parametrize("wrong", [{"grpc_port": -1}, {"http_port": 65536}, {"envoy_concurrency": 0}])
def test_values_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)  # type: ignore[arg-type]  # wrong on purpose
