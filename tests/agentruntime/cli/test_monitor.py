"""`agent monitor` as a process: on a terminal it draws and leaves no trace, elsewhere it prints lines."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from agentruntime import errors

from tests.agentruntime.cli.conftest import Agent
from tests.agentruntime.cli.figures_samples import busy_agent, busy_worker
from tests.agentruntime.platform_services import Record
from tests.waiting import until

AGENT = Path(sys.executable).with_name("agent")
SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
IN_MS = ["--interval", "100ms"]


@contextmanager
def monitoring(
    endpoint: str, *argv: str, stdout: int | IO[bytes] = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """`agent monitor` as a process of its own, which must end by itself after the body."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    env = {**inherited, "UAPI_ENDPOINT": endpoint, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        [AGENT, "monitor", *argv, *IN_MS], stdout=stdout, stderr=subprocess.PIPE, env=env, start_new_session=True
    )
    try:
        yield process
        process.wait(30)
    finally:
        process.kill()
        process.communicate()


def read_until(descriptor: int, text: str, seen: str = "") -> str:
    """What a terminal was sent, until `text` is in it."""
    while text not in seen:
        seen += os.read(descriptor, 65536).decode()
    return seen


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal; proc(5)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)


def resize(descriptor: int, lines: int, columns: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@pytest.mark.timeout(90)
def test_on_a_terminal_it_draws_and_leaves_no_trace(endpoint: str, record: Record) -> None:
    record.deployments = [busy_agent(busy_worker(1), busy_worker(2))]
    ours, theirs = pty.openpty()
    resize(theirs, 10, 100)
    with monitoring(endpoint, "busy", stdout=theirs) as process:
        picture = read_until(ours, "busy-02")
        # The alternate screen, so that what was there before comes back.
        assert "\x1b[?1049h" in picture
        assert "\x1b[?1049l" not in picture
        resize(theirs, 3, 60)
        process.send_signal(signal.SIGWINCH)
        read_until(ours, "and 3 more")
        # One goes, another comes.
        record.deployments = [busy_agent(busy_worker(2), busy_worker(3))]
        resize(theirs, 10, 60)
        process.send_signal(signal.SIGWINCH)
        text = SEQUENCE.sub("", read_until(ours, "busy-03"))
        assert max(map(len, text.rpartition("busy-03")[0].splitlines()[-3:])) <= 60
        process.send_signal(signal.SIGINT)
        end = read_until(ours, "\x1b[?1049l")
        process.wait(30)
        end += os.read(ours, 65536).decode() if "\x1b[?25h" not in end else ""
        assert "\x1b[?25h" in end
    assert process.returncode == 0
    os.close(ours)
    os.close(theirs)


@pytest.mark.timeout(60)
def test_elsewhere_it_prints_a_line_for_each_look(endpoint: str, record: Record) -> None:
    record.deployments = [busy_agent(busy_worker(1))]
    with monitoring(endpoint, "busy", "--metrics", "cpu,memory") as process:
        assert process.stdout is not None
        first, second = process.stdout.readline().decode(), process.stdout.readline().decode()
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0
    assert first[9:] == "busy  workers 1  cpu 50%  memory 128MB of 512MB\n"
    # Its counters stand still.
    assert second[9:] == "busy  workers 1  cpu 0%  memory 128MB of 512MB\n"


@pytest.mark.timeout(60)
def test_json_is_an_object_a_line(endpoint: str, record: Record) -> None:
    record.deployments = [busy_agent(busy_worker(1), busy_worker(2))]
    with monitoring(endpoint, "busy-02", "--json") as process:
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        record.deployments = [busy_agent(busy_worker(1))]
        while found["workers"]:
            assert [worker["worker_id"] for worker in found["workers"]] == ["busy-02"]
            found = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0


@pytest.mark.timeout(60)
def test_a_platform_that_does_not_answer_for_a_while_is_waited_for(endpoint: str, record: Record) -> None:
    record.deployments = [busy_agent(busy_worker(1))]
    with monitoring(endpoint, "busy", "--metrics", "cpu") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        record.raises["GetDeployment"] = errors.Unavailable("the pool is away")
        said = process.stderr.readline()
        # Where the machine is slow, it is what the attempt before the last one met.
        assert said.startswith(b"no answer, trying on: ")
        assert said.endswith(b"the pool is away\n")
        del record.raises["GetDeployment"]
        # Longer than what a pipe may have held back.
        for _ in range(5):
            assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0


@pytest.mark.timeout(60)
def test_where_nobody_reads_a_second_interrupt_ends_it(endpoint: str, record: Record) -> None:
    record.deployments = [busy_agent(busy_worker(1))]
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
    os.write(theirs, b"x" * 4096)
    with monitoring(endpoint, "busy", "--json", stdout=theirs) as process:
        # One look at least is before the interrupt then, and cannot be printed.
        until(lambda: len(record.requests) > 5, timeout_s=30)
        process.send_signal(signal.SIGINT)
        until(lambda: not catches(process.pid, signal.SIGINT), timeout_s=30)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
    assert process.returncode == -signal.SIGINT
    os.close(ours)
    os.close(theirs)


@pytest.mark.timeout(60)
def test_it_ends_when_the_agent_is_gone(endpoint: str, record: Record) -> None:
    record.deployments = [busy_agent(busy_worker(1))]
    with monitoring(endpoint, "busy") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        record.deployments = []
        assert b"error: agent 'busy' not found" in process.stderr.readline()
    assert process.returncode == 15


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--metrics cpu,disk", "--metrics: there is no 'disk'; write some of cpu,memory,network,gpu"),
        ("--metrics ,", "--metrics: none is named; write some of cpu,memory,network,gpu"),
        ("--interval 1ms", "--interval: 1ms is not between 100ms and 1h"),
        ("--interval often", "'often' is not a duration"),
    ],
)
def test_what_cannot_be_followed(agent: Agent, flags: str, says: str) -> None:
    result = agent("monitor", "busy", *flags.split())
    assert (result.status, result.out, result.err.count("\n")) == (13, "", 1)
    assert says in result.err
