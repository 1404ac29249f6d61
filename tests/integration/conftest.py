"""One whole platform, started by the `agent` command as a user would, for the tests that do not break it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agentruntime.home import Home

AGENT = Path(sys.executable).parent / "agent"
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120


@dataclass(frozen=True)
class Platform:
    """A running platform, and the `agent` command for it."""

    home: Home
    # "127.0.0.1:port" and "http://127.0.0.1:port".
    grpc_address: str
    http_address: str

    def agent(self, *arguments: str, code: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs the `agent` command, which must exit with `code`."""
        done = subprocess.run(
            [str(AGENT), *arguments],
            env={**os.environ, "UAPI_HOME": str(self.home.root), "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            cwd=cwd,
        )
        assert done.returncode == code, f"agent {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def json(self, *arguments: str) -> Any:
        """What the command prints with --output json."""
        return json.loads(self.agent(*arguments, "--output", "json").stdout)

    def workers(self, agent: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.json("ps")
        return [row for row in rows if row["agent"] == agent]


@pytest.fixture(scope="session")
def platform() -> Iterator[Platform]:
    """Runs the agents echo and mock-ai, for callers with a credential and without."""
    with tempfile.TemporaryDirectory(prefix="uapi-it-") as directory:
        home = Home(Path(directory, "home"))
        starting = Platform(home, "", "")
        starting.agent("up", "--grpc-port", "0", "--http-port", "0", "--anonymous", "call")
        try:
            addresses = json.loads((home.run / "gateway.json").read_text())
            running = Platform(home, addresses["grpc_address"], addresses["http_address"])
            for image in ("echo:latest", "mock-ai:latest"):
                running.agent("run", image)
            yield running
        finally:
            starting.agent("down")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory for a project of the test's own."""
    directory = tmp_path / "project"
    directory.mkdir()
    return directory
