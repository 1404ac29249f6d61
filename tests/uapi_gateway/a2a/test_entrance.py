"""What comes in over gRPC, and that the SDK is not imported before."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from a2a.types import a2a_pb2 as a2a
from a2a.types import a2a_pb2_grpc
from agentruntime import errors, status
from grpc import aio

from tests.uapi_gateway.a2a.speaking import Speaking, said, speaking
from uapi_gateway.access.policy import Policy


@pytest_asyncio.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Speaking]:
    async with speaking(tmp_path, Policy(anonymous=False)) as made:
        yield made


def _stub(channel: aio.Channel) -> Any:
    make: Any = a2a_pb2_grpc.A2AServiceStub
    return make(channel)


async def error_of(gateway: Speaking, request: a2a.SendMessageRequest, **metadata: str) -> errors.AgentError:
    async with aio.insecure_channel(gateway.grpc) as channel:
        said = [(key.replace("_", "-"), value) for key, value in metadata.items()]
        with pytest.raises(aio.AioRpcError) as caught:
            await _stub(channel).SendMessage(request, metadata=said)
    return status.decode(caught.value)


async def test_an_agent_is_named_by_tenant_or_metadata(gateway: Speaking) -> None:
    async with aio.insecure_channel(gateway.grpc) as channel:
        stub = _stub(channel)
        by_tenant, by_metadata = said(), said(message_id="n")
        by_tenant.tenant = "helper"
        assert (await stub.SendMessage(by_tenant)).task.id == "c.m"
        named = (("x-uapi-agent", "helper"),)
        assert (await stub.SendMessage(by_metadata, metadata=named)).task.id == "c.n"


async def test_an_agent_must_be_named_and_only_one(gateway: Speaking) -> None:
    assert "name the agent" in (await error_of(gateway, said())).message
    request = said()
    request.tenant = "helper"
    error = await error_of(gateway, request, x_uapi_agent="plain")
    assert isinstance(error, errors.InvalidArgument)
    assert "name one agent" in error.message


async def test_errors_are_the_platforms_where_a2a_has_none(gateway: Speaking) -> None:
    request = said()
    request.tenant = "none"
    assert isinstance(await error_of(gateway, request), errors.AgentNotFound)
    request.tenant = "helper"
    error = await error_of(gateway, request, x_uapi_principal="anonymous")
    assert isinstance(error, errors.Unauthenticated)
    assert error.reason == "CREDENTIAL_MISSING"
    assert isinstance(await error_of(gateway, request, x_uapi_principal="oidc:corp:me"), errors.PermissionDenied)
    gateway.worker.refuses = errors.QueueFull("too much waits")
    assert isinstance(await error_of(gateway, request), errors.QueueFull)


async def test_what_is_no_request_or_no_method_is_refused(gateway: Speaking) -> None:
    async with aio.insecure_channel(gateway.grpc) as channel:
        for method, code in (
            ("SendMessage", grpc.StatusCode.INVALID_ARGUMENT),
            ("Other", grpc.StatusCode.UNIMPLEMENTED),
        ):
            call: Any = channel.unary_unary(f"/lf.a2a.v1.A2AService/{method}")
            with pytest.raises(aio.AioRpcError) as caught:
                await call(b"\xff\xff")
            assert caught.value.code() is code


def test_the_sdk_is_imported_by_the_first_call_only() -> None:
    code = "import sys, uapi_gateway.server, uapi_gateway.a2a.entrance; print([m for m in sys.modules if m == 'a2a'])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.strip() == "[]"
