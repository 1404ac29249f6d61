"""An agent's container image is of use without the platform: plain `docker run` serves it."""

import contextlib
from typing import Any

import grpc
import pytest
from agentruntime._proto.uapi.v1 import text_generation_pb2, text_generation_pb2_grpc
from docker.models.containers import Container
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conformance.stage import CONTAINER, stage
from tests.engine import Engine

pytestmark = [pytest.mark.integration, pytest.mark.root, pytest.mark.timeout(300)]
_PORT = 50051
_TIMEOUT_S = 30


def test_plain_docker_run_serves_an_agent(engine: Engine) -> None:
    with (
        stage(CONTAINER, engine) as platform,
        contextlib.closing(engine.client()) as client,
    ):
        reference = platform.build("plain", "1.0.0", None, "--container")
        assert reference in client.images.get(reference).tags
        container = client.containers.run(reference, detach=True)
        try:
            assert _health(_address(container)) == health_pb2.HealthCheckResponse.SERVING
            assert _generated(_address(container), "hello") == "hello"
            container.stop()
            container.reload()
            assert container.attrs["State"]["ExitCode"] == 0
        finally:
            container.remove(force=True)


def _address(container: Container) -> str:
    container.reload()
    return f"{container.attrs['NetworkSettings']['IPAddress']}:{_PORT}"


def _health(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S, wait_for_ready=True).status)


def _generated(address: str, prompt: str) -> str:
    with grpc.insecure_channel(address) as channel:
        stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
        return str(stub.GenerateText(text_generation_pb2.GenerateTextRequest(prompt=prompt), timeout=_TIMEOUT_S).text)
