"""Agents under `--security-context restricted`, and those on a machine that has no sandbox for them."""

import os
from pathlib import Path

import grpc
import pytest
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime.home import Home
from grpc import aio

from tests.agent_pool import harness
from tests.agent_pool.harness import RunningPool

pytestmark = [pytest.mark.integration, pytest.mark.root]
# What agents commonly do, and System V's shared memory, which they do not: filtered out only if restricted.
AGENT = """\
import ctypes, os, socket, subprocess, tempfile, threading
from agentruntime import Agent

def shared_memory():
    libc = ctypes.CDLL(None, use_errno=True)
    return os.strerror(ctypes.get_errno()) if libc.shmget(0, 4096, 0o600) < 0 else "shared"

AT_IMPORT = shared_memory()

class Tester(Agent):
    def generate(self, prompt, *, temperature, max_tokens):
        said = []
        thread = threading.Thread(target=said.append, args=("thread",))
        thread.start()
        thread.join()
        said.append(subprocess.run(["echo", "program"], capture_output=True, text=True).stdout.strip())
        with tempfile.NamedTemporaryFile("w+") as file, socket.socket(socket.AF_INET6):
            file.write("file")
            file.seek(0)
            said.append(file.read())
        return ", ".join([*said, shared_memory(), AT_IMPORT])
"""
ROOT_WITHOUT_NAMESPACES = """
import os, runpy
from pathlib import Path
from agent_worker import linux
linux.unshare(linux.CLONE_NEWUSER)
Path("/proc/self/setgroups").write_text("deny")
Path("/proc/self/uid_map").write_text("0 0 1")
Path("/proc/self/gid_map").write_text("0 0 1")
Path("/proc/sys/user/max_user_namespaces").write_text("0")
runpy.run_module("agent_pool", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("context", "shared"),
    [(pb.SECURITY_CONTEXT_DEFAULT, "shared"), (pb.SECURITY_CONTEXT_RESTRICTED, "Operation not permitted")],
)
async def test_what_a_context_leaves(pool: RunningPool, context: "pb.SecurityContext.ValueType", shared: str) -> None:
    await pool.build(harness.project("tester", code=AGENT))
    isolation = pb.Isolation(security_context=context)
    # The first was no spare, the second was.
    for replicas in (1, 2):
        deployment = await pool.run("tester:1.0.0", replicas=replicas, isolation=isolation)
        assert not deployment.notes
        worker = deployment.workers[-1]
        said = await harness.generate(worker.address, "go")
        assert said == f"thread, program, file, {shared}, {shared}"
        threads = [path.read_text() for path in Path(f"/proc/{worker.pid}/task").glob("*/status")]
        assert len(threads) > 1
        assert all("Seccomp:\t2\n" in each for each in threads)


async def test_a_pool_that_is_root_runs_nothing_without_a_sandbox(short_directory: Path) -> None:
    pool = RunningPool(Home(short_directory), dict(os.environ), ["-c", ROOT_WITHOUT_NAMESPACES])
    await pool.start()
    try:
        await pool.build(harness.project("tester"))
        with pytest.raises(aio.AioRpcError) as failure:
            await pool.run("tester:1.0.0")
        assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "the agent would be, too" in (failure.value.details() or "")
        deployment = await pool.run("tester:1.0.0", allow_unenforced=True)
        assert "agents are not isolated from this machine" in "".join(deployment.notes)
        assert await harness.generate(deployment.workers[0].address, "go") == "GO"
    finally:
        await pool.end()
