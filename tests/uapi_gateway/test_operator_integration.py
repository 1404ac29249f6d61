"""Who may do what through a real Envoy, registration from outside, and the gateway's own services."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import agent_gateway_pb2 as gateway_proto
from agentruntime._proto.uapi.v1 import agent_gateway_pb2_grpc, agent_pool_pb2_grpc, agent_registry_pb2_grpc
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_proto
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as proto
from google.protobuf import struct_pb2
from google.protobuf.duration_pb2 import Duration
from grpc import aio
from grpc_health.v1 import health_pb2

from tests.uapi_gateway.conftest import Platform
from tests.uapi_gateway.echo_service import echoing
from tests.uapi_gateway.pool_service import deployment
from tests.uapi_gateway.stand_ins import generate
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


async def fails(call: Any) -> errors.AgentError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return status.decode(caught.value)


def registration(agent_id: str, endpoint: str, **changes: Any) -> proto.RegisterAgentRequest:
    fields = {"services": ["TextGenerationService"], **changes}
    return proto.RegisterAgentRequest(
        registration=proto.AgentRegistration(agent_id=agent_id, endpoint=endpoint, **fields)
    )


@contextlib.asynccontextmanager
async def external(name: str) -> AsyncIterator[str]:
    """An agent outside the pool; its "localhost:port"."""
    async with echoing("127.0.0.1:0", name) as port:
        yield f"localhost:{port}"


async def test_operating_over_tcp_needs_the_credential(platform: Platform) -> None:
    registry = agent_registry_pb2_grpc.AgentRegistryStub(platform.tcp)
    pool = agent_pool_pb2_grpc.AgentPoolStub(platform.tcp)
    refused: list[Any] = [
        (pool.ListWorkers, pool_proto.ListWorkersRequest()),
        (registry.KeepAlive, proto.KeepAliveRequest()),
        (registry.DeregisterAgent, proto.DeregisterAgentRequest()),
        (registry.RegisterAgent, registration("x", "localhost:1")),
    ]
    for wrong in ((), (("authorization", "Bearer wrong"),), (("authorization", platform.home.token()),)):
        for method, request in refused:
            error = await fails(method(request, timeout=5, metadata=wrong))
            assert isinstance(error, errors.Unauthenticated)
            assert "Bearer" in error.message
        # It says nothing before it is refused: grpc.aio forgets the status that ends a call while it writes.
        debugging: Any = pool.DebugWorker(timeout=5, metadata=wrong)
        assert isinstance(await fails(debugging.read()), errors.Unauthenticated)
    right = (("authorization", f"Bearer {platform.home.token()}"),)
    workers = await pool.ListWorkers(pool_proto.ListWorkersRequest(), timeout=5, metadata=right)
    assert len(workers.workers) == 3
    # Reading needs none.
    agents = (await registry.ListAgents(proto.ListAgentsRequest(), timeout=5)).agents
    assert [agent.agent_id for agent in agents] == ["alpha", "beta"]


async def test_the_unix_socket_needs_no_credential(platform: Platform) -> None:
    pool = agent_pool_pb2_grpc.AgentPoolStub(platform.unix)
    assert len((await pool.ListWorkers(pool_proto.ListWorkersRequest(), timeout=5)).workers) == 3
    assert platform.home.gateway_socket.stat().st_mode & 0o777 == 0o600


async def test_agents_never_see_the_operators_credential(platform: Platform) -> None:
    token = platform.home.token()
    for channel in (platform.tcp, platform.unix):
        for scheme in ("Bearer", "bearer"):
            ours = ("authorization", f"{scheme} {token}")
            assert "authorization" not in await generate(channel, "headers", ours, agent="beta")
        for mistaken, why in (
            (token, "not passed on"),
            (f"Token {token}", "not passed on"),
            (f"Bearer {token}, Bearer {token}", "not valid"),
        ):
            with pytest.raises(aio.AioRpcError, match=why) as raised:
                await generate(channel, "headers", ("authorization", mistaken), agent="beta")
            assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert status.decode(raised.value).reason == "CREDENTIAL_INVALID"
        assert "Bearer own" in await generate(channel, "headers", ("authorization", "Bearer own"), agent="beta")


async def test_naming_an_agent_that_is_not_ready_opens_no_service_of_the_gateway(platform: Platform) -> None:
    """Calls to it land at the relay; the registry's own services must not answer there."""
    platform.pool.put(deployment("asleep", {}))
    registry = agent_registry_pb2_grpc.AgentRegistryStub(platform.tcp)
    await eventually(lambda: _unready(platform, "asleep"))
    named = (("x-uapi-agent", "asleep"),)
    calls: list[Any] = [
        (registry.DeregisterAgent, proto.DeregisterAgentRequest(agent_id="x")),
        (registry.ListAgents, proto.ListAgentsRequest()),
    ]
    for method, request in calls:
        error = await fails(method(request, metadata=named, timeout=5))
        assert isinstance(error, errors.AgentNotReady)
    path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
    discovery: Any = platform.tcp.unary_unary(path)
    assert isinstance(await fails(discovery(b"", timeout=5)), errors.Unimplemented)
    platform.pool.remove("asleep")


async def _unready(platform: Platform, agent: str) -> bool:
    return isinstance(await fails(generate(platform.tcp, "x", agent=agent)), errors.AgentNotReady)


async def test_an_agent_from_outside_is_routed_until_its_lease_runs_out(platform: Platform) -> None:
    registry = agent_registry_pb2_grpc.AgentRegistryStub(platform.unix)
    async with external("outside") as endpoint:
        request = registration("outside", endpoint, capabilities=["text-generation"])
        request.lease_ttl.CopyFrom(Duration(seconds=1))
        answer = await registry.RegisterAgent(request, timeout=6)
        assert answer.agent.state == proto.AGENT_STATE_READY
        assert list(answer.agent.services) == ["uapi.v1.TextGenerationService"]
        await platform.routed("outside")
        kept = await registry.KeepAlive(proto.KeepAliveRequest(lease_id=answer.lease_id), timeout=5)
        assert kept.lease_ttl.seconds == 1
        await eventually(lambda: _gone(platform, "outside"))
        error = await fails(registry.KeepAlive(proto.KeepAliveRequest(lease_id=answer.lease_id), timeout=5))
        assert isinstance(error, errors.LeaseNotFound)
        # Registered again, then taken out by itself.
        await registry.RegisterAgent(registration("outside", endpoint), timeout=6)
        await platform.routed("outside")
        for _ in range(2):
            await registry.DeregisterAgent(proto.DeregisterAgentRequest(agent_id="outside"), timeout=5)
        await eventually(lambda: _gone(platform, "outside"))


async def _gone(platform: Platform, agent: str) -> bool:
    try:
        await generate(platform.tcp, "x", agent=agent)
    except aio.AioRpcError as error:
        return error.code() is grpc.StatusCode.NOT_FOUND
    return False


async def test_an_agent_from_outside_that_dies_is_unready_until_it_is_back(platform: Platform) -> None:
    registry = agent_registry_pb2_grpc.AgentRegistryStub(platform.unix)
    async with external("flaky") as endpoint:
        await registry.RegisterAgent(registration("flaky", endpoint), timeout=6)

    async def state() -> int:
        return (await registry.GetAgent(proto.GetAgentRequest(agent_id="flaky"), timeout=5)).agent.state

    async def unready() -> bool:
        return await state() == proto.AGENT_STATE_UNAVAILABLE

    await eventually(unready)
    error = await fails(generate(platform.tcp, "x", agent="flaky", timeout_s=0.5))
    assert isinstance(error, errors.AgentNotReady)
    async with echoing(endpoint.replace("localhost", "127.0.0.1"), "flaky"):
        assert await generate(platform.tcp, "x", agent="flaky") == "flaky: x"
        await registry.DeregisterAgent(proto.DeregisterAgentRequest(agent_id="flaky"), timeout=5)


async def test_registrations_that_are_refused(platform: Platform) -> None:
    registry = agent_registry_pb2_grpc.AgentRegistryStub(platform.unix)
    host, port = platform.gateway.address.split(":")
    own = f"localhost:{port}"
    link = platform.tmp / "link.sock"
    link.symlink_to(platform.home.pool_socket)
    cases: list[tuple[proto.RegisterAgentRequest, type[errors.AgentError], str]] = [
        (registration("dead", "localhost:1"), errors.FailedPrecondition, "does not accept connections"),
        (registration("dead", "unix:/nowhere.sock"), errors.FailedPrecondition, "does not accept connections"),
        (registration("dead", "no-such-host.invalid:80"), errors.FailedPrecondition, "no-such-host.invalid:80"),
        (registration("dead", "a..b:80"), errors.FailedPrecondition, "no host name"),
        (registration("me", own), errors.FailedPrecondition, "the platform's own address"),
        (registration("me", f"0.0.0.0:{port}"), errors.FailedPrecondition, "the platform's own address"),
        *(
            (registration("me", f"unix:{path}"), errors.FailedPrecondition, "the platform's own address")
            for path in (link, *(platform.home.run / f"{name}.sock" for name in ("pool", "xds", "relay", "control")))
        ),
        (registration("Bad_Name", own), errors.InvalidArgument, "not an agent name"),
        (registration("x", "localhost"), errors.InvalidArgument, "not an endpoint"),
        (registration("x", "localhost:99999"), errors.InvalidArgument, "not an endpoint"),
        (registration("x", own, services=[]), errors.InvalidArgument, "at least one service"),
        (registration("x", own, services=["Mystery"]), errors.InvalidArgument, "write its full name"),
        (registration("x", own, services=["uapi.v1.AgentPool"]), errors.InvalidArgument, "platform's own"),
        (registration("x", own, health_check="ftp://x"), errors.InvalidArgument, "not a health check"),
        (registration("x", own, health_check=f"http://{host}:1/h"), errors.FailedPrecondition, "does not a"),
        (
            registration("x", own, health_check=f"{platform.gateway.http_address}/nix"),
            errors.FailedPrecondition,
            "404",
        ),
    ]
    for request, kind, words in cases:
        error = await fails(registry.RegisterAgent(request, timeout=6))
        assert isinstance(error, kind), (request, error)
        assert words in error.message
    too_long = registration("x", own)
    too_long.lease_ttl.CopyFrom(Duration(seconds=7200))
    assert "1 hour" in (await fails(registry.RegisterAgent(too_long, timeout=6))).message
    async with external("other") as endpoint:
        for taken in ("alpha", "alpha-01"):
            error = await fails(registry.RegisterAgent(registration(taken, endpoint), timeout=6))
            assert isinstance(error, errors.AlreadyExists)


async def test_call_agent(platform: Platform) -> None:
    gateway = agent_gateway_pb2_grpc.AgentGatewayStub(platform.tcp)

    def request(**fields: Any) -> gateway_proto.CallAgentRequest:
        data = struct_pb2.Struct()
        data.update(fields.pop("data", {}))
        given = {"agent_id": "beta", "service": "TextGenerationService", "method": "GenerateText", **fields}
        return gateway_proto.CallAgentRequest(data=data, **given)

    seed = {"prompt": "Write a poem about AI", "temperature": 0.7, "max_tokens": 100}
    answer = await gateway.CallAgent(request(data=seed), timeout=5)
    assert dict(answer.data) == {"text": "beta-01: Write a poem about AI", "confidence": 0.0, "tokens_used": 1.0}
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    seen = await gateway.CallAgent(request(data={"prompt": "headers"}), metadata=(("traceparent", trace),), timeout=5)
    assert "traceparent: '00-0af7651916cd43dd8448eb211c80319c-" in str(seen.data["text"])
    seen = await gateway.CallAgent(request(data={"prompt": "deadline"}), timeout=5)
    assert 0 < float(str(seen.data["text"])) < 5.1
    for refused, kind, words in (
        (request(data={"promt": "x"}), errors.InvalidArgument, "promt"),
        (request(data={"max_tokens": "many"}), errors.InvalidArgument, "max_tokens"),
        (request(data={"prompt": [1]}), errors.InvalidArgument, "prompt"),
        (request(agent_id="nobody"), errors.AgentNotFound, "nobody"),
        (request(service="Mystery"), errors.Unimplemented, "uapi.v1.TextGenerationService"),
        (request(method="Nothing"), errors.Unimplemented, "Nothing"),
        (request(method="StreamText"), errors.InvalidArgument, "streams"),
        (request(data={"prompt": "fail"}), errors.InsufficientResources, "no room"),
    ):
        error = await fails(gateway.CallAgent(refused, timeout=5))
        assert isinstance(error, kind), error
        assert words in error.message
    error = await fails(gateway.CallAgent(request(data={"prompt": "hang"}), timeout=0.3))
    assert isinstance(error, errors.DeadlineExceeded)


async def test_status(platform: Platform) -> None:
    gateway = agent_gateway_pb2_grpc.AgentGatewayStub(platform.tcp)
    answer = await gateway.GetStatus(gateway_proto.GetStatusRequest(), timeout=5)
    found = {process.name: process for process in answer.processes}
    assert found.keys() == {"gateway", "envoy", "pool"}
    assert found["envoy"].pid == platform.envoy_pid
    assert found["pool"].version == "stand-in"
    assert platform.gateway.address in found["gateway"].addresses


async def test_health_of_everything(platform: Platform) -> None:
    check = platform.tcp.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    for name in (
        "",
        "alpha",
        "alpha-01",
        "uapi.v1.TextGenerationService",
        "uapi.v1.AgentRegistry",
        "uapi.v1.AgentPool",
    ):
        answer = await check(health_pb2.HealthCheckRequest(service=name), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, name
    assert isinstance(await fails(check(health_pb2.HealthCheckRequest(service="x"), timeout=5)), errors.NotFound)


async def test_watching_agents_and_health(platform: Platform) -> None:
    agents = agent_registry_pb2_grpc.AgentRegistryStub(platform.tcp).WatchAgents(proto.WatchAgentsRequest())
    watch: Any = platform.tcp.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    health = watch(health_pb2.HealthCheckRequest(service="passing"))
    assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    known = []
    async for event in agents:
        if event.synced:
            break
        known.append(event.changed.agent_id)
    assert known[:2] == ["alpha", "beta"]
    platform.pool.put(deployment("passing", {"passing-01": "unix:/nowhere"}))
    assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
    platform.pool.remove("passing")
    assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    heard = [event async for event in _until_removed(agents, "passing")]
    assert heard[0].changed.agent_id == "passing"
    agents.cancel()
    health.cancel()


async def _until_removed(agents: Any, agent_id: str) -> AsyncIterator[Any]:
    async for event in agents:
        yield event
        if event.removed == agent_id:
            return


async def grpcurl(platform: Platform, *arguments: str, data: str = "") -> str:
    options = ["-plaintext", *(("-d", data) if data else ())]
    before, after = [a for a in arguments if a.startswith("-H")], [a for a in arguments if not a.startswith("-H")]
    headers = [part for a in before for part in ("-H", a.removeprefix("-H"))]
    process = await asyncio.create_subprocess_exec(
        "grpcurl", *options, *headers, platform.gateway.address, *after,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_grpcurl_sees_everything(platform: Platform) -> None:
    listed = (await grpcurl(platform, "list")).splitlines()
    for service in ("uapi.v1.TextGenerationService", "uapi.v1.AgentRegistry", "grpc.health.v1.Health"):
        assert service in listed
    everything = await grpcurl(platform, "describe")
    assert "rpc StreamText" in everything
    assert "rpc ServerReflectionInfo" in everything
    described = await grpcurl(platform, "describe", "uapi.v1.GenerateTextRequest")
    assert "string prompt = 1;" in described
    # Through the agent's own reflection, and to the agent.
    answer = await grpcurl(
        platform, "-Hx-uapi-agent: beta", "uapi.v1.TextGenerationService/GenerateText", data='{"prompt": "hi"}'
    )
    assert '"text": "beta-01: hi"' in answer
