"""Connections out of isolated workers, by names, with TLS, in bulk, and while the gateway dies.

The platform runs in a mount namespace of its own, in which /etc/hosts has names of the test's: the gateway looks
them up as it looks up any other.
"""

import datetime
import hashlib
import json
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import textwrap
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import pytest
from agentruntime import Client
from agentruntime.home import Home
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health, health_pb2_grpc

from tests.integration.conftest import AGENT, TIMEOUT_S
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.root, pytest.mark.timeout(200)]
# An operator opens the first; the second is one that agent.yaml names, and turns out to be this machine.
NAME, REBOUND = "api.egress.test", "rebound.egress.test"
_BYTES = 30 * 2**20
_AGENT = """\
import asyncio
from agentruntime import Agent

class Caller(Agent):
    async def generate(self, prompt, *, temperature, max_tokens):
        scope = {}
        exec(prompt, scope)
        return str(await asyncio.to_thread(scope["answer"]))
"""


@dataclass(frozen=True)
class World:
    """A platform with an agent that calls what is outside."""

    home: Home
    client: Client
    environment: dict[str, str]
    # Of the servers: one with TLS, one without, one of gRPC.
    tls_port: int
    port: int
    grpc_port: int
    certificate: str

    def agent(self, *arguments: str, prefix: tuple[str, ...] = ()) -> str:
        argv = [*prefix, str(AGENT), *arguments]
        done = subprocess.run(
            argv, env=self.environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, code: str) -> str:
        return self.client.generate_text("caller", textwrap.dedent(code), timeout_s=60).text


def certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed one for `NAME`, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = directory / "cert.pem", directory / "key.pem"
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server of this machine; its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:

        def handle(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                answer(connection)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=handle, args=(server.accept()[0],)).start()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def serving_grpc() -> Iterator[int]:
    """A gRPC server that says that it is healthy; its port."""
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


def tell_what_came(connection: socket.socket) -> None:
    """Reads to the end, and only then answers: with the hash of what came, and as many bytes again."""
    came = bytearray()
    while piece := connection.recv(2**18):
        came += piece
    connection.sendall(hashlib.sha256(came).digest() + came)


def secured(context: ssl.SSLContext) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(2**16)
            tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")

    return answer


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="uapi-eg-")))
        certificate_file, key_file = certificate(directory)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate_file, key_file)
        home = Home(directory / "h")
        environment = {**os.environ, "UAPI_HOME": str(home.root), "NO_COLOR": "1", "AGENT_RUNTIME_MODE": "native"}
        made = World(
            home,
            stack.enter_context(Client(f"unix:{home.root}/run/gateway.sock", timeout_s=TIMEOUT_S)),
            environment,
            stack.enter_context(serving(secured(context))),
            stack.enter_context(serving(tell_what_came)),
            stack.enter_context(serving_grpc()),
            certificate_file.read_text(),
        )
        hosts = directory / "hosts"
        hosts.write_text(f"127.0.0.1 localhost\n127.0.0.1 {NAME} {REBOUND}\n")
        within = f'mount --bind {hosts} /etc/hosts && exec "$@"'
        prefix = ("unshare", "--mount", "--propagation", "private", "sh", "-c", within, "sh")
        stack.callback(made.agent, "down")
        made.agent("up", "--grpc-port", "0", "--http-port", "0", prefix=prefix)
        project = directory / "project"
        project.mkdir()
        (project / "caller.py").write_text(_AGENT)
        (project / "agent.yaml").write_text(
            "name: caller\nversion: 1.0.0\nentrypoint: caller:Caller\n"
            f"permissions:\n  egress: ['{REBOUND}:{made.port}']\n"
        )
        made.agent("build", str(project))
        opened = [f"--egress={NAME}:{port}" for port in (made.tls_port, made.port, made.grpc_port)]
        made.agent("run", "caller:1.0.0", *opened)
        yield made


def test_https_by_name_and_without_any_proxy(world: World) -> None:
    code = f"""
    def answer():
        import os, ssl, urllib.request
        assert not [name for name in os.environ if "proxy" in name.lower()]
        context = ssl.create_default_context(cadata={world.certificate!r})
        with urllib.request.urlopen("https://{NAME}:{world.tls_port}/", context=context, timeout=30) as response:
            return response.read().decode()
    """
    assert world.ask(code) == "hello"


def test_grpc_by_name(world: World) -> None:
    code = f"""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    def answer():
        with grpc.insecure_channel("{NAME}:{world.grpc_port}") as channel:
            return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30).status
    """
    assert world.ask(code) == "1"


def test_what_goes_both_ways_is_whole_and_a_half_closed_connection_goes_on(world: World) -> None:
    code = f"""
    def answer():
        import hashlib, os, socket
        sent = os.urandom({_BYTES})
        with socket.create_connection(("{NAME}", {world.port}), 60) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            received = bytearray()
            while piece := connection.recv(2**18):
                received += piece
        return received == hashlib.sha256(sent).digest() + sent
    """
    assert world.ask(code) == "True"


def test_a_thousand_short_connections(world: World) -> None:
    code = f"""
    def answer():
        import socket
        from concurrent.futures import ThreadPoolExecutor
        def once(number):
            with socket.create_connection(("{NAME}", {world.port}), 60) as connection:
                connection.sendall(b"%d" % number)
                connection.shutdown(socket.SHUT_WR)
                received = b""
                while piece := connection.recv(100):
                    received += piece
                return received[32:] == b"%d" % number
        with ThreadPoolExecutor(8) as threads:
            return sum(threads.map(once, range(1000)))
    """
    assert world.ask(code) == "1000"


def test_a_name_that_turns_out_to_be_this_machine_is_refused_and_recorded(world: World) -> None:
    code = f"""
    def answer():
        import socket
        try:
            return socket.create_connection(("{REBOUND}", {world.port}), 30).recv(1)
        except ConnectionResetError:
            return "reset"
    """
    assert world.ask(code) == "reset"
    said = world.agent("audit")
    assert f"{REBOUND} is 127.0.0.1, a loopback address; an operator may open it with --egress" in said


def connections(world: World) -> int:
    """That the agent has told of so far."""
    return world.agent("logs", "caller-01").count("connected")


def has_more(world: World, before: int) -> bool:
    return connections(world) > before


def test_the_gateway_dies_and_comes_back(world: World) -> None:
    code = f"""
    import os, socket
    def reply(connection):
        connection.sendall(b"x")
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while piece := connection.recv(100):
            received += piece
        return received[32:]
    def answer():
        # One that is there breaks; one that is begun while nobody accepts waits, and is served.
        old = socket.create_connection(("{NAME}", {world.port}), 60)
        os.write(1, b"connected\\n")
        try:
            broke = old.recv(1) == b""
        except ConnectionResetError:
            broke = True
        with socket.create_connection(("{NAME}", {world.port}), 60) as new:
            return broke, reply(new)
    """
    for _ in range(2):
        # The call itself goes by way of Envoy, which outlives its gateway.
        with ThreadPoolExecutor(1) as thread:
            before = connections(world)
            asking = thread.submit(world.ask, code)
            until(partial(has_more, world, before), 30)
            os.kill(json.loads(world.home.gateway_file.read_text())["pid"], signal.SIGKILL)
            assert asking.result(60) == "(True, b'x')"


def test_what_went_out_is_counted(world: World) -> None:
    world.ask(f"import socket\ndef answer():\n    socket.create_connection(('{NAME}', {world.port}), 30).close()")
    address = json.loads(world.home.gateway_file.read_text())["http_address"]
    request = urllib.request.Request(f"{address}/metrics", headers={"authorization": f"Bearer {world.home.token()}"})
    page = urllib.request.urlopen(request, timeout=30).read().decode()
    assert 'uapi_egress_connections_total{agent="caller",outcome="allowed"}' in page
