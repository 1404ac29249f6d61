"""The supervisor: its decisions, and real processes that come up, crash and end."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from agentruntime import processes, supervisor
from agentruntime.home import Home
from agentruntime.listening import Listen
from agentruntime.supervisor import ChildSpec, Supervisor

from tests.waiting import eventually

# Serves on a socket until SIGTERM; notes in a file that it ended.
SERVE = """
import os, pathlib, signal, socket, sys
path, ended = sys.argv[1:]
pathlib.Path(path).unlink(missing_ok=True)
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
try:
    signal.pause()
finally:
    with open(ended, "a") as out:
        out.write(pathlib.Path(path).name + "\\n")
"""


# Serves likewise, and has something run beside it that outlives it unless it is told to end; a successor takes that
# over.
SERVE_WITH_ORPHAN = """
import os, pathlib, subprocess, sys
note = pathlib.Path(sys.argv[1] + ".orphan")
if not note.exists():
    note.write_text(str(subprocess.Popen(["sleep", "60"], start_new_session=True).pid))
try:
    exec(os.environ["SERVE"])
finally:
    os.kill(int(note.read_text()), 9)
    note.unlink()
"""


@pytest.mark.parametrize(("deaths", "delay_s"), [(0, 0.1), (1, 0.2), (3, 0.8), (8, 25.6), (9, 30.0), (1000, 30.0)])
def test_restart_delay(deaths: int, delay_s: float) -> None:
    assert supervisor.restart_delay_s(deaths) == pytest.approx(delay_s)


@pytest.mark.parametrize(
    ("tail", "status", "sentence"),
    [
        ("", 1, "exit status 1"),
        ("", -9, "SIGKILL"),
        ("starting\nuapi_gateway: port 50051 is in use\n", 1, "port 50051 is in use"),
        ("error: no\n\n", 1, "no"),
        ("serving\n", -15, "SIGTERM"),
        ('{"event": "ended", "level": "info"}\n', 0, "ended (exit status 0)"),
        ('{"event": "failed", "error": "disk full"}\n', 1, "disk full"),
        ("[1]\n", 1, "[1]"),
        ("odd\n", 3, "odd (exit status 3)"),
        ('{"no": "event"}', 1, '{"no": "event"}'),
    ],
)
def test_why_a_child_ended(tail: str, status: int, sentence: str) -> None:
    assert supervisor.failure_of(tail, status) == sentence


def test_a_record_that_is_damaged_is_none() -> None:
    home = Home.default()
    assert supervisor.read_record(home) == {}
    home.create()
    for text in ("{", "[]"):
        home.supervisor_file.write_text(text)
        assert supervisor.read_record(home) == {}
    assert not supervisor.is_running(home)


class Running:
    """A supervisor of two children in this process."""

    def __init__(self, home: Home, specs: list[ChildSpec]) -> None:
        self.home = home
        self.report = io.StringIO()
        self.said: list[str] = []
        self.report.close = lambda: self.said.append(self.report.getvalue())  # type: ignore[method-assign] # kept to be read
        self.supervisor = Supervisor(home, Listen(), specs, self.report)
        self.task = asyncio.create_task(self.supervisor.run())

    def pid(self, name: str) -> int:
        children = supervisor.read_record(self.home).get("children", [])
        return next((child["pid"] for child in children if child["name"] == name), 0)

    async def end(self) -> int:
        self.supervisor.stop()
        return await asyncio.wait_for(self.task, 15)


def serving(home: Home, name: str, program: str = SERVE) -> ChildSpec:
    path = home.run / f"{name}.sock"
    return ChildSpec(name, [sys.executable, "-c", program, str(path), str(home.root / "ended")], [path])


@pytest.fixture
def home() -> Home:
    home = Home.default()
    home.create()
    return home


@pytest.mark.integration
async def test_children_start_and_end_in_order(home: Home) -> None:
    running = Running(home, [serving(home, "gateway"), serving(home, "pool")])
    await eventually(lambda: bool(running.said))
    assert json.loads(running.said[0]) == {"event": "up"}
    record = supervisor.read_record(home)
    assert record["pid"] == os.getpid()
    pids = [child["pid"] for child in record["children"]]
    assert await running.end() == 0
    assert (home.root / "ended").read_text() == "gateway.sock\npool.sock\n"
    assert not any(map(psutil.pid_exists, pids))
    assert not home.supervisor_file.exists()


@pytest.mark.integration
async def test_a_killed_child_comes_back_within_a_second(home: Home) -> None:
    running = Running(home, [serving(home, "gateway"), serving(home, "pool")])
    await eventually(lambda: bool(running.said))
    for _ in range(2):
        before, pool = running.pid("gateway"), running.pid("pool")
        os.kill(before, signal.SIGKILL)
        killed_at = time.monotonic()
        gone = (0, before)
        await eventually(lambda gone=gone: running.pid("gateway") not in gone)  # type: ignore[misc]  # mypy infers no defaults of lambdas
        assert time.monotonic() - killed_at < 1.0
        assert running.pid("pool") == pool
    assert supervisor.read_record(home)["children"][0]["restarts"] == 2
    await running.end()


@pytest.mark.integration
async def test_what_children_left_that_are_dead_at_the_end_is_ended(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVE", SERVE)
    specs = [serving(home, name, SERVE_WITH_ORPHAN) for name in ("gateway", "pool")]
    running = Running(home, specs)
    await eventually(lambda: bool(running.said))
    orphans = [int(Path(f"{spec.sockets[0]}.orphan").read_text()) for spec in specs]
    # The pool is in its restart delay or only just back when it is told to end.
    for name in ("pool", "gateway"):
        os.kill(running.pid(name), signal.SIGKILL)
    assert all(map(psutil.pid_exists, orphans))
    await eventually(lambda: running.pid("gateway") == 0)
    assert await running.end() == 0
    await eventually(lambda: not any(processes.start_time(pid) for pid in orphans))
    assert not home.supervisor_file.exists()


@pytest.mark.integration
async def test_a_child_that_cannot_start_ends_all_and_says_why(home: Home) -> None:
    broken = ChildSpec("pool", [sys.executable, "-c", "raise SystemExit('agent_pool: no disk')"], [home.pool_socket])
    running = Running(home, [serving(home, "gateway"), broken])
    assert await asyncio.wait_for(running.task, 15) == 1
    event = json.loads(running.said[0])
    assert event == {"event": "failed", "error": "the pool did not start: no disk"}
    assert not home.supervisor_file.exists()


@pytest.mark.integration
async def test_what_a_dead_supervisor_left_is_ended_first(home: Home) -> None:
    left = subprocess.Popen(serving(home, "gateway").argv)
    record = {"children": [{"name": "gateway", "pid": left.pid, "start_time": processes.start_time(left.pid)}]}
    home.supervisor_file.write_text(json.dumps(record))
    running = Running(home, [serving(home, "gateway")])
    await eventually(lambda: bool(running.said))
    assert left.wait(5) is not None
    await running.end()


@pytest.mark.integration
def test_a_second_one_refuses(home: Home, tmp_path: Path) -> None:
    import fcntl

    with supervisor.lock_file(home).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert supervisor.is_running(home)
        done = subprocess.run(
            [sys.executable, "-m", "agentruntime.supervisor"], capture_output=True, text=True, timeout=30, check=False
        )
    assert done.returncode == 1
    assert done.stderr == f"error: a supervisor runs already for {home.root}\n"
    assert not supervisor.is_running(home)
