"""A pool that a gateway reaches over TCP with mutual TLS, and nobody else."""

import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime._proto.uapi.v1 import agent_pool_pb2_grpc
from agentruntime.certificates import GATEWAY
from cryptography import x509
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.agent_pool.harness import RunningPool
from tests.certificates import Made, authority, issued
from tests.uapi_gateway.stand_ins import Gateway, private_home
from tests.waiting import eventually

pytestmark = pytest.mark.integration
HERE = "DNS:localhost,IP:127.0.0.1"


@pytest.fixture
def ca(tmp_path: Path) -> Made:
    return authority(tmp_path)


@pytest.fixture
def cert(tmp_path: Path, ca: Made) -> Made:
    return issued(tmp_path, ca, "pool", HERE)


@pytest.fixture
async def address(ca: Made, cert: Made) -> AsyncIterator[str]:
    """Of a pool."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"
    environment = {
        **os.environ,
        "AGENT_POOL_LISTEN": address,
        "AGENT_POOL_TLS_CERT": str(cert.cert),
        "AGENT_POOL_TLS_KEY": str(cert.key),
        "AGENT_POOL_TLS_CA": str(ca.cert),
    }
    with private_home() as home:
        pool = RunningPool(home, environment)
        try:
            await pool.start()
            yield address
        finally:
            await pool.end()


async def node(address: str, ca: Made, own: Made | None) -> grpc.StatusCode:
    pair = (own.key.read_bytes(), own.cert.read_bytes()) if own else (None, None)
    credentials = grpc.ssl_channel_credentials(ca.cert.read_bytes(), *pair)
    async with aio.secure_channel(address, credentials, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = agent_pool_pb2_grpc.AgentPoolStub(channel)
        try:
            await stub.GetNode(pb.GetNodeRequest(), timeout=10)
        except aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def shown(address: str, ca: Made, own: Made) -> int:
    host, _, port = address.partition(":")
    context = ssl.create_default_context(cafile=str(ca.cert))
    context.load_cert_chain(own.cert, own.key)
    with (
        socket.create_connection((host, int(port)), 5) as plain,
        context.wrap_socket(plain, server_hostname=host) as made,
    ):
        return x509.load_der_x509_certificate(made.getpeercert(binary_form=True) or b"").serial_number


async def test_only_the_gateway_reaches_a_pool_on_tcp(address: str, tmp_path: Path, ca: Made, cert: Made) -> None:
    gateways = issued(tmp_path, ca, "gateway", f"URI:{GATEWAY}")
    program = issued(tmp_path, ca, "program", "URI:spiffe://agentruntime/client/ci")
    foreign = issued(tmp_path, authority(tmp_path, "Other CA"), "foreign", f"URI:{GATEWAY}")
    assert await node(address, ca, gateways) is grpc.StatusCode.OK
    assert await node(address, ca, program) is grpc.StatusCode.PERMISSION_DENIED
    assert await node(address, ca, foreign) is grpc.StatusCode.UNAVAILABLE
    assert await node(address, ca, None) is grpc.StatusCode.UNAVAILABLE
    # A new certificate is that of the next connection.
    renewed = issued(tmp_path, ca, "renewed", HERE)
    cert.key.write_bytes(renewed.key.read_bytes())
    cert.cert.write_bytes(renewed.cert.read_bytes())
    serial = x509.load_pem_x509_certificate(renewed.cert.read_bytes()).serial_number
    await eventually(lambda: shown(address, ca, gateways) == serial)
    # Half of one is no certificate: the pool goes on with the one that it has.
    cert.cert.write_bytes(renewed.cert.read_bytes()[:200])
    assert shown(address, ca, gateways) == serial
    # Nor is one that has ended.
    ended = issued(tmp_path, ca, "ended", HERE, expired=True)
    cert.key.write_bytes(ended.key.read_bytes())
    cert.cert.write_bytes(ended.cert.read_bytes())
    assert shown(address, ca, gateways) == serial


async def test_a_gateway_works_with_a_pool_on_tcp(address: str, tmp_path: Path, ca: Made) -> None:
    own = issued(tmp_path, ca, "gateway", f"URI:{GATEWAY}")
    with private_home() as home:
        gateway = Gateway(home)
        try:
            await gateway.start(
                UAPI_GATEWAY_POOL_ENDPOINT=f"https://{address}",
                UAPI_GATEWAY_CLIENT_CERT=str(own.cert),
                UAPI_GATEWAY_CLIENT_CA=str(ca.cert),
            )
            async with gateway.channel(unix=True) as channel:
                # By way of Envoy, whoever calls; and the gateway's own watch of the pool.
                answer = await agent_pool_pb2_grpc.AgentPoolStub(channel).GetNode(pb.GetNodeRequest(), timeout=20)
                assert answer.pid
                health: Any = health_pb2_grpc.HealthStub(channel)  # its methods are set as attributes, untyped
                asked = health_pb2.HealthCheckRequest(service="uapi.v1.AgentPool")

                async def synced() -> bool:
                    answer = await health.Check(asked, timeout=5)
                    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

                await eventually(synced)
        finally:
            gateway.stop()
