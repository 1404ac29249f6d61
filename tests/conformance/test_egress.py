"""The way out of an isolated network, as an agent sees it. `tests/integration/test_egress.py` has more of it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb

from tests.conformance.stage import CONTAINER, Stage

pytestmark = [pytest.mark.integration, pytest.mark.root]
_ECHO = """
def answer():
    import hashlib, os, socket, threading
    with socket.create_connection(("{host}", {port}), 30) as connection:
        sent, received = os.urandom(2**22), b""
        sender = threading.Thread(target=lambda: (connection.sendall(sent), connection.shutdown(socket.SHUT_WR)))
        sender.start()
        while piece := connection.recv(2**16):
            received += piece
        sender.join()
        return sent == received
"""
_REFUSED = """
def answer():
    import socket
    said = []
    for host, port in {targets}:
        try:
            with socket.create_connection((host, port), 10) as connection:
                said.append(connection.recv(1))
        except OSError:
            pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(0.2)
        udp.sendto(b"x", ("127.0.0.1", {udp_port}))
        try:
            said.append(udp.recv(1))
        except OSError:
            pass
    return said
"""


@contextmanager
def echoing() -> Iterator[int]:
    """A server of this machine; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                while piece := connection.recv(2**16):
                    connection.sendall(piece)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=answer, args=(server.accept()[0],)).start()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_egress(stage: Stage) -> None:
    """A worker reaches what its agent's egress names, and nothing else of the network."""
    with echoing() as port, echoing() as other, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", port))
        permissions = pb.Permissions(egress=[f"localhost:{port}", "nobody.invalid:443"])
        with stage.running("outgoing", permissions=permissions):
            assert stage.ask("outgoing", _ECHO.format(host="localhost", port=port)) == "True"
            targets = [("localhost", other), ("127.0.0.1", other), ("nobody.invalid", 443), ("nobody.invalid", 80),
                       ("example.com", 443), ("192.0.2.1", port), ("::1", other)]  # fmt: skip
            assert stage.ask("outgoing", _REFUSED.format(targets=targets, udp_port=port)) == "[]"
            udp.settimeout(0.2)
            with pytest.raises(TimeoutError):
                udp.recv(1)


def test_egress_with_the_hosts_network(stage: Stage) -> None:
    """Egress has no effect with the host's network, and a note says so."""
    permissions = pb.Permissions(egress=["api.example.com:443"])
    with stage.running("unbound", permissions=permissions, network=pb.NETWORK_MODE_HOST) as deployment:
        assert any("egress has no effect" in note for note in deployment.notes)


def test_egress_to_addresses(stage: Stage) -> None:
    """A host that is an address is reached natively, and refused for containers."""
    permissions = pb.Permissions(egress=["192.0.2.1:443"])
    if stage.driver == CONTAINER:
        with pytest.raises(errors.FailedPrecondition, match="by name only"):
            stage.run("numbered", permissions=permissions)
        return
    with stage.running("numbered", permissions=permissions):
        code = """
        def answer():
            import socket
            return socket.create_connection(("192.0.2.1", 443), 10).getpeername()[0]
        """
        assert stage.ask("numbered", code) == "192.0.2.1"
