"""What the SDK's tests share: a runtime directory of their own, and a server to talk to."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agentruntime.platform_services import Record, serving


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No test meets this user's platform, settings or working directory."""
    for variable in ("UAPI_ENDPOINT", "UAPI_AUTH_TOKEN", "UAPI_TIMEOUT", "AGENT_RUNTIME_MODE", "AGENT_MEMORY_LIMIT"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("AGENT_CPU_LIMIT", "AGENT_GPU_ENABLED", "AGENT_LOG_LEVEL", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("UAPI_TLS_CA", "UAPI_TLS_CERT", "UAPI_TLS_KEY"):
        monkeypatch.delenv(variable, raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    # Not below tmp_path: with so long a path the sockets would be made elsewhere, and left there.
    with tempfile.TemporaryDirectory(prefix="uapi-sdk-") as home:
        monkeypatch.setenv("UAPI_HOME", home)
        yield Path(home)


@pytest.fixture
def record() -> Record:
    return Record()


@pytest.fixture
def endpoint(record: Record) -> Iterator[str]:
    with serving(record) as address:
        yield address
