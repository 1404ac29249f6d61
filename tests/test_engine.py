"""The tests' own engine leaves nothing, also where the test run was killed."""

import subprocess
import sys
import tempfile
from pathlib import Path

import docker
import psutil
import pytest

from tests import engine
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.root]

_STARTER = """
import time
from tests import engine
with engine.private() as where:
    print(where, flush=True)
    time.sleep(300)
"""


def test_a_killed_test_run_leaves_an_engine_that_the_next_one_removes() -> None:
    argv = [sys.executable, "-c", _STARTER]
    with subprocess.Popen(argv, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        where = starter.stdout.readline().strip()
        if not where:
            pytest.skip("no engine can be started here")
        directory = Path(where.removeprefix("unix://")).parent
        assert directory.parent == Path(tempfile.gettempdir())
        client = docker.DockerClient(base_url=where)
        daemon = psutil.Process(int((directory / "pidfile").read_text()))
        assert client.containers.list(all=True) == []
        client.close()
        # In the middle of a test run it is nobody's to remove.
        engine.sweep()
        assert daemon.is_running()
        starter.kill()
    engine.sweep()
    assert not directory.exists()
    assert not daemon.is_running()
    until(lambda: str(directory) not in Path("/proc/self/mounts").read_text())
