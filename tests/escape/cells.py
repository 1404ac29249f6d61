"""Where attempts are made: isolated workers of a real pool, beside a machine with something to be reached."""

import json
import secrets
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb

from agent_pool.cgroups import detect
from tests.agent_pool import harness
from tests.agent_pool.harness import RunningPool
from tests.escape.attempts import Attempt

HELD = "held"
# Code comes as the prompt, or in the environment to be run while the agent is imported.
_AGENT = """
import json, os
from agentruntime import Agent

def attempt(code):
    try:
        exec(code, {})
    except BaseException as error:
        # What is no refusal is a mistake in the attempt.
        return f"{'held' if isinstance(error, OSError) else 'failed'}: {type(error).__name__}: {error}"
    return "escaped"

AT_IMPORT = json.dumps([attempt(code) for code in json.loads(os.environ.get("ATTEMPTS", "[]"))])

class Tester(Agent):
    def generate(self, prompt, *, temperature, max_tokens):
        return AT_IMPORT if prompt == "at import" else attempt(prompt)
"""


@dataclass(frozen=True)
class Cell:
    """An isolated worker, and what is around it."""

    pool: RunningPool
    mode: "pb.RuntimeMode.ValueType"
    address: str
    # What attempts name.
    around: dict[str, Any]

    def fill(self, attempt: Attempt) -> str:
        return attempt.code.format(**self.around)

    async def inside(self, code: str) -> str:
        """ "escaped", or "held: " and why."""
        return await harness.generate(self.address, code)

    async def at_import(self, codes: Sequence[str]) -> list[str]:
        """As `inside` of each, while an agent is imported."""
        env = {"ATTEMPTS": json.dumps(codes)}
        deployment = await self.pool.run("tester:1.0.0", agent="importer", env=env, mode=self.mode)
        try:
            answers: list[str] = json.loads(await harness.generate(deployment.workers[0].address, "at import"))
            return answers
        finally:
            await self.pool.stop("importer")


def outside(attempt: Attempt, code: str) -> None:
    """The same without any isolation, which must succeed."""
    argv = [sys.executable, "-c", attempt.outside_first + code]
    control = subprocess.run(argv, check=False, timeout=30, capture_output=True, text=True)
    assert control.returncode == 0, control.stderr


async def build(pool: RunningPool, host: dict[str, Any], mode: "pb.RuntimeMode.ValueType", **settings: Any) -> Cell:
    """Two workers of one agent, of which the first makes the attempts (it was not a spare), and one of another."""
    await pool.build(harness.project("tester", code=textwrap.dedent(_AGENT)))
    await pool.build(harness.project("neighbour"))
    neighbour = (await pool.run("neighbour:1.0.0", mode=mode)).workers[0]
    # Ways out open nothing but themselves, also not for another protocol.
    ways = pb.Permissions(egress=["api.example.com:443", f"localhost:{host['udp_port']}"])
    running = await pool.run("tester:1.0.0", replicas=2, mode=mode, permissions=ways, **settings)
    first, second = running.workers
    bundles = list(pool.home.bundles.glob("*/app/tester.py"))
    for bundle in bundles:
        _make_rising(bundle.with_name("rise"))
    group = detect.find(Path("/proc/self/mountinfo").read_text(), Path(f"/proc/{first.pid}/cgroup").read_text())
    memory = group.v1.get("memory")
    around = {
        **host,
        "unique": f".uapi-{secrets.token_hex(6)}",
        "sibling_slot": Path(second.address).parent.name,
        "sibling_socket": second.address.removeprefix("unix:"),
        "sibling_pid": second.pid,
        "neighbour_socket": neighbour.address.removeprefix("unix:"),
        "neighbour_file": str(next(path for path in bundles if "attempt" not in path.read_text())),
        "pool_socket": str(pool.home.pool_socket),
        "pool_pid": pool.pid,
        "state": str(pool.home.state / "pool" / "pool.db"),
        "root_uid": "0",
        "memory_limit": str(memory / "memory.limit_in_bytes" if memory else Path(str(group.v2), "memory.max")),
        "group_procs": str((memory or Path(str(group.v2))).parent / "cgroup.procs"),
    }
    return Cell(pool, mode, first.address, around)


@contextmanager
def host(directory: Path) -> Iterator[dict[str, Any]]:
    """What there is on a machine: listeners, a secret, a program that makes whoever runs it root."""
    secret = directory / "secret"
    secret.write_text("s3cret")
    _make_rising(directory / "rise")
    abstract = f"uapi-{secrets.token_hex(6)}"
    with ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind("\0" + abstract)
        unix.listen()
        tcp6 = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        anywhere = stack.enter_context(socket.create_server(("127.9.9.9", 0)))
        for listener in (tcp, tcp6, anywhere):
            stack.enter_context(_answering(listener, _greet))
        stack.enter_context(_answering(udp, _return))
        yield {
            "secret": str(secret),
            "setuid_program": str(directory / "rise"),
            "tcp_port": tcp.getsockname()[1],
            "tcp6_port": tcp6.getsockname()[1],
            "any_port": anywhere.getsockname()[1],
            "udp_port": udp.getsockname()[1],
            "abstract": abstract,
        }


def _make_rising(path: Path) -> None:
    """A program that makes whoever runs it root, if it may."""
    shutil.copy(shutil.which("sleep") or "/bin/sleep", path)
    path.chmod(0o4755)


def _greet(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"hello")


def _return(receiver: socket.socket) -> None:
    _, sender = receiver.recvfrom(10)
    receiver.sendto(b"hello", sender)


@contextmanager
def _answering(listening: socket.socket, answer: Any) -> Iterator[None]:
    """Has a thread answer whoever comes."""
    over = threading.Event()
    listening.settimeout(0.1)

    def serve() -> None:
        while not over.is_set():
            try:
                answer(listening)
            except TimeoutError:
                continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
