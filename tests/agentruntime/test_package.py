"""What `import agentruntime` brings."""

import subprocess
import sys

import agentruntime
import pytest

HEAVY = ("grpc", "google", "pydantic", "yaml", "rich", "typer", "structlog", "psutil", "asyncio")


def test_importing_it_loads_nothing_heavy() -> None:
    code = f"import sys, agentruntime; print([name for name in {HEAVY!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def test_its_names() -> None:
    assert dir(agentruntime) == sorted(agentruntime.__all__)
    for name in agentruntime.__all__:
        assert getattr(agentruntime, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = agentruntime.Nonsense
