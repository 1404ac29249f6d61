"""The runtime directory."""

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentruntime.cli import down
from agentruntime.errors import FailedPrecondition
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


def test_create_closes_it_to_others(own_environment: Path) -> None:
    home = Home(own_environment / "home")
    assert home.token() == ""
    home.create()
    home.create()
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700
    # It is the gateway that makes the token.
    assert home.token() == ""
    home.token_file.write_text("uapi_x\n")
    assert home.token() == "uapi_x"


def test_a_long_path_moves_the_sockets(tmp_path: Path) -> None:
    short, long = Home(Path("/h")), Home(tmp_path / ("x" * 120))
    assert short.run == Path("/h/run")
    assert long.run != long.root / "run"
    assert len(os.fsencode(long.gateway_socket)) <= 107
    assert Home(tmp_path / ("y" * 120)).run != long.run


@pytest.fixture
def long_home(tmp_path: Path) -> Iterator[Home]:
    """A runtime directory whose run directory lies where anybody may make one first."""
    home = Home(tmp_path / ("x" * 120))
    run = home.run
    yield home
    if run.is_symlink():
        run.unlink()
    shutil.rmtree(run, ignore_errors=True)


def test_a_run_directory_elsewhere_is_this_user_s_alone(long_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    run = long_home.run
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    assert long_home.run == run
    long_home.create()
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    long_home.create()
    run.chmod(0o755)
    with pytest.raises(FailedPrecondition, match="not a directory of this user alone"):
        _ = long_home.gateway_socket
    with pytest.raises(FailedPrecondition, match="UAPI_HOME"):
        long_home.create()


def test_a_run_directory_that_is_a_link_is_refused(long_home: Home, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir(mode=0o700)
    long_home.run.symlink_to(tmp_path / "other")
    with pytest.raises(FailedPrecondition, match="not a directory of this user alone"):
        long_home.create()


@pytest.mark.root
def test_a_run_directory_of_another_user_is_refused(long_home: Home) -> None:
    run = long_home.run
    run.mkdir(mode=0o700)
    os.chown(run, 65534, 65534)
    with pytest.raises(FailedPrecondition, match="not a directory of this user alone"):
        long_home.create()


def test_down_removes_a_run_directory_elsewhere_once_nobody_is_there(long_home: Home) -> None:
    long_home.create()
    run = long_home.run
    (run / "w").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(run / "w" / "s"))
        server.listen()
        down.remove_run(long_home)
        assert run.exists()
    down.remove_run(long_home)
    assert not run.exists()
    down.remove_run(long_home)
