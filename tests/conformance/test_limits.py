"""The kernel's limits on one worker with small ones: memory, CPU, processes."""

from collections.abc import Iterator

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb

from tests.conformance.stage import Stage

pytestmark = [pytest.mark.integration, pytest.mark.root]
NAME = "capped"
_FORKS = """
def answer():
    import subprocess, sys
    program = '''
import os, signal, time
made = []
why = None
try:
    while len(made) < 1000:
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        made.append(pid)
except OSError as error:
    why = error.strerror
for pid in made:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
print(len(made), why)
'''
    return subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True).stdout
"""
_SPIN = """
def answer():
    import time
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        pass
"""
_EAT = """
def answer():
    kept = []
    while True:
        kept.append(bytearray(b"x" * 2**20))
"""


@pytest.fixture(scope="module")
def capped(stage: Stage) -> Iterator[Stage]:
    """The agent `capped`: 100 MB, a fifth of a core, 40 processes and threads."""
    resources = pb.Resources(memory_bytes=100_000_000, cpu_limit_millis=200, pids_limit=40)
    with stage.running(NAME, resources=resources):
        yield stage


def test_pids(capped: Stage) -> None:
    """A worker's processes and threads are capped: a fork beyond that fails."""
    made, _, why = capped.ask(NAME, _FORKS).strip().partition(" ")
    assert 0 < int(made) < 40
    assert why == "Resource temporarily unavailable"
    assert 0 < capped.worker(f"{NAME}-01").usage.pids <= 40


def test_cpu(capped: Stage) -> None:
    """A worker's CPU is capped: the kernel counts the periods in which it waited."""
    before = capped.worker(f"{NAME}-01").usage
    capped.ask(NAME, _SPIN)
    after = capped.worker(f"{NAME}-01").usage
    assert after.throttled_periods - before.throttled_periods >= 5
    assert after.throttled_seconds > before.throttled_seconds
    # A fifth of 1.5 seconds, and what the rest of the worker used.
    assert 0.1 < after.cpu_seconds - before.cpu_seconds < 0.8


def test_memory(capped: Stage) -> None:
    """A worker beyond its memory is killed, said to be OOM-killed at its cap, and started again."""
    with pytest.raises(errors.AgentError):
        capped.ask(NAME, _EAT)
    again = capped.until(f"{NAME}-01", lambda now: now.restarts == 1 and now.state == pb.WORKER_STATE_READY)
    assert again.reason == "restarted after: OOM-killed at 100MB"
    assert capped.client.generate_text(NAME, "back").text == "back"
