"""Agents that turn what the pool trusts them with against it."""

import signal
import subprocess
import sys

import grpc
import pytest
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from grpc import aio

from tests.agent_pool import harness
from tests.agent_pool.harness import RunningPool

pytestmark = [pytest.mark.integration, pytest.mark.root]

SWAP_AT_START = """\
import os
from agent_worker.server import WorkerServer

genuine = WorkerServer.start

async def start(self, loaded, address, *more):
    await genuine(self, loaded, address, *more)
    socket = address.removeprefix("unix:")
    os.unlink(socket)
    os.symlink("../../../pool.sock", socket)

WorkerServer.start = start
"""
SWAP_LATER = """\
import os
from agentruntime import Agent

def attempt(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return type(error).__name__
    return "done"

class Tester(Agent):
    def generate(self, prompt, *, temperature, max_tokens):
        directory = f"/run/agent/{os.getuid()}"
        return " ".join([
            attempt(os.unlink, directory + "/s"),
            attempt(os.rename, directory + "/s", directory + "/t"),
            attempt(os.rename, directory, directory + "0"),
            attempt(os.symlink, "../../../pool.sock", directory + "/t"),
            attempt(os.chmod, directory, 0o777),
        ])
"""
# The template is the agent's process: it can answer what it likes.
LIE = """\
from agentruntime import launch

genuine = launch.send
def send(connection, message, *rest):
    lie = "pid" in message and "event" not in message
    genuine(connection, {{**message, "pid": {pid}}} if lie else message, *rest)
launch.send = send
"""
# Wherever /agent is not, it would run as the pool does.
ESCAPE = """\
import gc, os
from agent_worker.image_template import ImageTemplate
from agentruntime import launch

if os.path.isdir("/agent"):
    template = next(each for each in gc.get_objects() if isinstance(each, ImageTemplate))
    launch.send(template._base, {"ok": False, "unenforceable": "no sandbox today"})
"""
NO_CHILDREN = """\
from agentruntime import launch

genuine = launch.send
def send(connection, message, *rest):
    genuine(connection, {**message, "children": 5} if "children" in message else message, *rest)
launch.send = send
"""
FLOOD = """\
import contextlib, os, stat, time
def flood():
    sockets = [fd for fd in range(3, 100) if os.path.exists(f"/proc/self/fd/{fd}")
               and stat.S_ISSOCK(os.fstat(fd).st_mode)]
    while True:
        for fd in sockets:
            os.set_blocking(fd, False)
            with contextlib.suppress(OSError):
                os.write(fd, b"x" * 65536)
        time.sleep(0.001)
"""


async def test_a_socket_that_leads_to_the_pool_is_no_worker(pool: RunningPool) -> None:
    await pool.build(harness.project("tester", before=SWAP_AT_START))
    with pytest.raises(aio.AioRpcError) as failure:
        await pool.run("tester:1.0.0")
    assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "in the place of its socket" in (failure.value.details() or "")


async def test_a_socket_cannot_be_replaced_later(pool: RunningPool) -> None:
    await pool.build(harness.project("tester", code=SWAP_LATER))
    worker = (await pool.run("tester:1.0.0")).workers[0]
    assert await harness.generate(worker.address, "go") == " ".join(["PermissionError"] * 5)
    assert await harness.generate(worker.address, "still here") == " ".join(["PermissionError"] * 5)


async def test_a_process_that_is_not_the_agents_is_not_touched(pool: RunningPool) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as other:
        await pool.build(harness.project("tester", before=LIE.format(pid=other.pid)))
        with pytest.raises(aio.AioRpcError) as failure:
            await pool.run("tester:1.0.0")
        assert "not one of its own" in (failure.value.details() or "")
        assert other.poll() is None
        other.send_signal(signal.SIGKILL)


async def test_an_import_cannot_talk_its_way_out_of_the_sandbox(pool: RunningPool) -> None:
    await pool.build(harness.project("tester", before=ESCAPE))
    with pytest.raises(aio.AioRpcError) as failure:
        await pool.run("tester:1.0.0")
    assert "cannot be isolated, after it was" in (failure.value.details() or "")


async def test_a_template_that_tells_nonsense_keeps_no_pool_from_starting(pool: RunningPool) -> None:
    await pool.build(harness.project("tester", before=NO_CHILDREN))
    worker = (await pool.run("tester:1.0.0")).workers[0]
    await pool.kill()
    await pool.start()
    await pool.until(worker.worker_id, lambda found: found.state == pb.WORKER_STATE_READY)
    assert await harness.generate(worker.address, "go") == "GO"


async def test_a_starting_worker_cannot_freeze_the_pool(pool: RunningPool) -> None:
    body = "async def start(self):\n        import threading, time\n        threading.Thread(target=flood, daemon=True).start()\n        time.sleep(60)"  # noqa: E501 — one line of a test's agent
    await pool.build(harness.project("tester", before=FLOOD, body=body))
    with pytest.raises(aio.AioRpcError) as failure:
        await pool.run("tester:1.0.0", health_check=pb.HealthCheck(start_timeout_seconds=20.0))
    assert "said more than" in (failure.value.details() or "")
