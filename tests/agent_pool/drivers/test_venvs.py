"""What a virtual environment is told to install, and when it is looked at again."""

import importlib.metadata
import importlib.util
import json
import venv
from pathlib import Path

import pytest
from agentruntime import errors

from agent_pool.drivers.venvs import Venvs


class Installed:
    version = "1.2.3"

    def __init__(self, url: str) -> None:
        self._url = url

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return json.dumps({"url": self._url}) if self._url else None


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("file:///srv/the%20checkout", "pip install '/srv/the checkout'"),
        ("https://files.example/a.whl", "pip install https://files.example/a.whl"),
        ("", "pip install agentruntime==1.2.3"),
    ],
)
async def test_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, told: str) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _name: Installed(url))
    venv.create(tmp_path / "bare", symlinks=True)
    with pytest.raises(errors.FailedPrecondition) as failure:
        await Venvs({}).check(str(tmp_path / "bare"))
    assert failure.value.message.endswith(told)


async def test_one_that_was_complete_is_looked_at_again_after_a_change(tmp_path: Path) -> None:
    """A `python` that agrees first, then does not, stands for a package that is removed."""
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    venvs = Venvs({})
    await venvs.check(str(tmp_path))
    python.write_text("#!/bin/sh\nexit 1\n")
    await venvs.check(str(tmp_path))
    (packages / "grpc").mkdir()
    with pytest.raises(errors.FailedPrecondition, match="lacks what a worker needs"):
        await venvs.check(str(tmp_path))


async def test_a_debugger_must_be_installed_where_workers_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Venvs({}).check("", debug=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(errors.FailedPrecondition, match="-m pip install debugpy"):
        await Venvs({}).check("", debug=True)
    await Venvs({}).check("")
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    with pytest.raises(errors.FailedPrecondition, match=f"{python} -m pip install debugpy"):
        await Venvs({}).check(str(tmp_path), debug=True)
    package = tmp_path / "lib" / "python3.11" / "site-packages" / "debugpy" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.touch()
    await Venvs({}).check(str(tmp_path), debug=True)
