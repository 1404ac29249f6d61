"""The walls around a worker: file system, network, privileges. `tests/escape/` tries to get over them."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime._proto.uapi.v1 import text_generation_pb2

from tests.conformance.stage import Stage

pytestmark = [pytest.mark.integration, pytest.mark.root]
_LIMIT_BPS = 16_000_000
_SENT_BYTES = 4_000_000


@pytest.fixture(scope="module")
def walled(stage: Stage) -> Iterator[Stage]:
    """The agent `walled`, as it is by default."""
    with stage.running("walled"):
        yield stage


def test_read_only_root(walled: Stage) -> None:
    """The root file system cannot be written, but for /tmp."""
    code = """
    def answer():
        said = []
        for path in ("/x", "/etc/passwd", "/agent/app/prober.py", "/usr/x", "/tmp/x"):
            try:
                open(path, "a").close()
                said.append(path)
            except OSError:
                pass
        return said
    """
    assert walled.ask("walled", code) == "['/tmp/x']"


def test_unprivileged(walled: Stage) -> None:
    """A worker is an unprivileged user without capabilities, and can gain none."""
    code = """
    def answer():
        fields = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines() if ":" in line)
        return [os.getuid() != 0, int(fields["CapEff"], 16), int(fields["CapBnd"], 16), fields["NoNewPrivs"].strip()]
    """
    assert walled.ask("walled", code) == "[True, 0, 0, '1']"


def test_no_network(walled: Stage) -> None:
    """A worker has no network but its own loopback, and serves nevertheless."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code = f"""
        def answer():
            import socket
            said = [line.split(":")[0].strip() for line in open("/proc/self/net/dev").readlines()[2:]]
            try:
                socket.create_connection(("127.0.0.1", {listener.getsockname()[1]}), timeout=2).close()
                said.append("connected")
            except OSError:
                pass
            return [name for name in said if not name.startswith(("tunl", "sit", "ip6", "gre", "erspan", "ip_vti"))]
        """
        assert walled.ask("walled", code) == "['lo']"


def test_restricted(stage: Stage) -> None:
    """A restricted worker has a filter of system calls, and serves."""
    with stage.running("restricted", isolation=pb.Isolation(security_context=pb.SECURITY_CONTEXT_RESTRICTED)):
        code = "answer = lambda: open('/proc/self/status').read().split('Seccomp:')[1].split()[0]"
        assert stage.ask("restricted", code) == "2"
        assert (
            stage.ask("restricted", "import ctypes\nanswer = lambda: ctypes.CDLL(None).unshare(0x10000000)") == "-1"
        )


_CONNECT = """
def answer():
    import socket
    with socket.create_connection(("127.0.0.1", {port}), timeout=30) as connection:
        {each}
"""


@pytest.fixture
def network_limit(stage: Stage, refused: Callable[[str], None]) -> Iterator[bool]:
    """The agent `limited`, or False where this machine refuses to limit its network."""
    isolation = pb.Isolation(network_limit_bps=_LIMIT_BPS)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(stage.running("limited", network=pb.NETWORK_MODE_HOST, isolation=isolation))
        except errors.FailedPrecondition as error:
            reason, why = error.reason, error.message
        else:
            reason, why = "", ""
        if why:
            assert reason == "NOT_ENFORCEABLE"
            assert stage.workers("limited") == []
            refused(why)
        yield not why


def test_host_network(stage: Stage) -> None:
    """A worker with the host's network reaches what listens there."""
    with socket.create_server(("127.0.0.1", 0)) as listener, stage.running("social", network=pb.NETWORK_MODE_HOST):
        code = f"""
        def answer():
            import socket
            socket.create_connection(("127.0.0.1", {listener.getsockname()[1]}), timeout=5).close()
        """
        assert stage.ask("social", code) == "None"


def test_network_limit(stage: Stage, network_limit: bool) -> None:
    """What a worker with the host's network sends is limited to what was asked for."""
    if not network_limit:
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        send = f"connection.sendall(bytes({_SENT_BYTES})); connection.shutdown(socket.SHUT_WR); connection.recv(1)"
        call = stage.client.agent("limited").text_generation.GenerateText.future
        prompt = "#" + _CONNECT.format(port=port, each=send)
        listener.settimeout(60)
        started, received = time.monotonic(), 0
        answer = call(text_generation_pb2.GenerateTextRequest(prompt=prompt), timeout=60)
        connection, _ = listener.accept()
        with connection:
            while piece := connection.recv(2**16):
                received += len(piece)
        seconds = time.monotonic() - started
        answer.result()
    assert received == _SENT_BYTES
    # What may pass at once is not held back.
    assert 0.5 * _LIMIT_BPS < received * 8 / seconds < 1.5 * _LIMIT_BPS
