from pathlib import PurePosixPath

import pytest
from agentruntime.packing import left_out


@pytest.mark.parametrize(
    "path", [".git", ".git/config", "a/__pycache__/x.txt", "a/b.pyc", "venv/bin/python", "x.egg-info", ".env"]
)
def test_left_out(path: str) -> None:
    assert left_out(PurePosixPath(path))


@pytest.mark.parametrize("path", ["agent.py", "agent.yaml", "a/.gitignore", ".env.example", "venvs/a", "b.pyc.txt"])
def test_kept(path: str) -> None:
    assert not left_out(PurePosixPath(path))
