"""The runtime directory."""

import os
import stat
from pathlib import Path

import pytest
from agentruntime.home import Home


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UAPI_HOME", str(tmp_path / "a"))
    assert Home.default().root == tmp_path / "a"
    monkeypatch.delenv("UAPI_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert Home.default().root == tmp_path / "state" / "agentruntime"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Home.default().root == tmp_path / ".local" / "state" / "agentruntime"


def test_create_closes_it_to_others_and_keeps_the_token(own_environment: Path) -> None:
    home = Home(own_environment / "home")
    assert home.token() == ""
    home.create()
    token = home.token()
    home.create()
    assert home.token() == token != ""
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700
    assert stat.S_IMODE(home.token_file.stat().st_mode) == 0o600
    assert [path.name for path in home.root.iterdir() if path.name.startswith("token.")] == []


def test_a_long_path_moves_the_sockets(tmp_path: Path) -> None:
    short, long = Home(Path("/h")), Home(tmp_path / ("x" * 120))
    assert short.run == Path("/h/run")
    assert long.run != long.root / "run"
    assert len(os.fsencode(long.gateway_socket)) <= 107
    assert Home(tmp_path / ("y" * 120)).run != long.run
