"""What is on disk survives kills in the middle of a write; a full disk is said to be full, and harms nobody."""

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime.home import Home
from grpc import aio

from tests.agent_pool.harness import RunningPool
from tests.integration.conftest import AGENT, ROOT
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.root, pytest.mark.timeout(300)]

# Saves one state after the other, and says so of each that is on disk. One interpreter, a fork for each kill.
_SAVER = """
import asyncio, os, random, signal, sys, time
from pathlib import Path
from agent_pool.state import SavedDeployment, StateStore
from tests.agent_pool.test_state import deployment

async def save_for_ever(state, number, acknowledge):
    saved = deployment()
    while True:
        number += 1
        saved.status = str(number)
        await state.save({"a": SavedDeployment.of(saved)})
        os.write(acknowledge, b"%d\\n" % number)

directory, rounds, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
number = 0
for _ in range(rounds):
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        asyncio.run(save_for_ever(StateStore(directory), number, writing))
    os.close(writing)
    first = os.read(reading, 1)
    time.sleep(chance.uniform(0, 0.02))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    acknowledged = [int(line) for line in (first + os.fdopen(reading, "rb").read()).split()]
    state = StateStore(directory)
    loaded = max((int(saved.status) for saved in state.load()), default=0)
    state.close()
    assert loaded >= max(acknowledged, default=number), (loaded, acknowledged)
    number = loaded
print(number)
"""
_KILLS = 60
_POOL_KILLS = 4


def test_a_state_file_outlives_a_kill_at_any_moment_of_a_save(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SAVER, str(tmp_path), str(_KILLS), "7"],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= _KILLS


async def test_a_pool_killed_while_it_saves_forgets_nothing_that_it_said(tmp_path: Path) -> None:
    chance = random.Random(11)
    with tempfile.TemporaryDirectory(prefix="uapi-kill-") as directory:
        pool = RunningPool(Home(Path(directory)), {**os.environ, "AGENT_POOL_DRAIN_DELAY_S": "0"})
        said: set[str] = set()
        await pool.start()
        try:
            for round_ in range(_POOL_KILLS):
                begun, ended = asyncio.Event(), asyncio.Event()
                adding = asyncio.create_task(_add_agents(pool, round_, said, begun, ended))
                await asyncio.wait_for(begun.wait(), 30)
                await asyncio.sleep(chance.uniform(0, 0.2))
                ended.set()
                await pool.kill()
                await adding
                await pool.start()
                there = (await pool.pool.ListDeployments(pb.ListDeploymentsRequest(), timeout=10)).deployments
                assert said <= {deployment.agent for deployment in there}
        finally:
            await pool.end()
        assert pool.leftovers() == []


async def _add_agents(
    pool: RunningPool, round_: int, said: set[str], begun: asyncio.Event, ended: asyncio.Event
) -> None:
    """Until the pool is gone: agents that sleep, or run, are registered one after the other."""
    number = 0
    try:
        while not ended.is_set():
            agent = f"a-{round_}-{number}"
            await pool.run("echo", agent=agent, replicas=1 if number == 0 else 0)
            said.add(agent)
            begun.set()
            number += 1
    except (aio.AioRpcError, asyncio.CancelledError):
        pass  # it was killed


NOISY = """
import logging
from agentruntime import Agent
class Noisy(Agent):
    def generate(self, prompt, *, temperature, max_tokens):
        print("heard", prompt * 1000, flush=True)  # more than a page
        logging.getLogger("noisy").warning("heard %s", prompt * 1000)
        return prompt
"""


@dataclass(frozen=True)
class SmallDisk:
    """A runtime directory on a small file system that only its own mount namespace has."""

    home: Home
    # Holds the namespace.
    keeper: int

    def seen(self, path: Path) -> Path:
        """The path as it is reached from outside of the namespace."""
        return Path(f"/proc/{self.keeper}/root{path}")

    def agent(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the `agent` command in the namespace."""
        inside = ["nsenter", f"--mount=/proc/{self.keeper}/ns/mnt", "--wd=/", str(AGENT), *arguments]
        return subprocess.run(
            inside,
            env={**os.environ, "UAPI_HOME": str(self.home.root), "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def fill(self) -> Path:
        """Leaves no byte free; returns the file that takes them."""
        path = self.seen(self.home.root / "filling")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            for size in (2**16, 2**12, 1):
                try:
                    while True:
                        os.write(descriptor, b"x" * size)
                except OSError:
                    continue
        finally:
            os.close(descriptor)
        return path


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    mount = 'mount -t tmpfs -o size=48m,mode=0700 tmpfs "$0" && echo mounted && exec sleep 300'
    with tempfile.TemporaryDirectory(prefix="uapi-disk-") as directory:
        keeper = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, directory],
            stdout=subprocess.PIPE,
        )
        try:
            assert keeper.stdout is not None
            assert keeper.stdout.readline() == b"mounted\n"
            disk = SmallDisk(Home(Path(directory)), keeper.pid)
            yield disk
            assert disk.agent("down").returncode == 0
        finally:
            keeper.kill()
            keeper.wait()
            if keeper.stdout is not None:
                keeper.stdout.close()


def test_a_full_disk_is_said_to_be_full_and_harms_nobody(small_disk: SmallDisk, tmp_path: Path) -> None:
    disk = small_disk
    up = disk.agent("up", "--grpc-port", "0", "--http-port", "0")
    assert up.returncode == 0, up.stderr
    run = disk.agent("run", "echo:latest")
    assert run.returncode == 0, run.stderr
    (tmp_path / "agent.yaml").write_text("name: mine\nversion: 1.0.0\nentrypoint: mine:Mine\n")
    (tmp_path / "mine.py").write_text("from agentruntime import Agent\nclass Mine(Agent): pass\n" + "#" * 2**20)
    noisy = tmp_path / "noisy"
    noisy.mkdir()
    (noisy / "agent.yaml").write_text("name: noisy\nversion: 1.0.0\nentrypoint: noisy:Noisy\n")
    (noisy / "noisy.py").write_text(NOISY)
    assert disk.agent("build", str(noisy)).returncode == 0
    assert disk.agent("run", "noisy:1.0.0").returncode == 0
    filling = disk.fill()
    for arguments in (("run", "echo:latest", "--replicas", "2"), ("run", "mock-ai:latest"), ("build", str(tmp_path))):
        refused = disk.agent(*arguments)
        assert refused.returncode == 10 + 8, (arguments, refused.stdout, refused.stderr)
        assert re.search("no space is left on the disk|disk is full", refused.stderr)
        assert "Traceback" not in refused.stderr
    # What was refused does not run.
    assert [len(_workers(disk, agent)) for agent in ("echo", "mock-ai")] == [1, 0]
    for agent in ("echo", "noisy"):
        for _ in range(2):
            called = disk.agent("call", agent, "still here")
            assert called.stdout.strip() == "still here", (agent, called.stderr)
    # One that dies comes back, on a disk that is still full.
    for worker in _workers(disk, "echo"):
        os.kill(worker, signal.SIGKILL)
    until(lambda: disk.agent("call", "echo", "back").stdout.strip() == "back", timeout_s=20)
    filling.unlink()
    again = disk.agent("run", "mock-ai:latest")
    assert again.returncode == 0, again.stderr


def _workers(disk: SmallDisk, agent: str) -> list[int]:
    rows = json.loads(disk.agent("ps", "--output", "json").stdout)
    return [row["pid"] for row in rows if row["agent"] == agent]
