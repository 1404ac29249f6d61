"""Who may call what, through a real Envoy: keys good and bad, roles, demands, and what leaks."""

import asyncio
import base64
import contextlib
import json
import subprocess
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import (
    access_pb2,
    access_pb2_grpc,
    agent_gateway_pb2,
    agent_gateway_pb2_grpc,
    agent_pool_pb2,
    agent_pool_pb2_grpc,
    agent_registry_pb2,
    agent_registry_pb2_grpc,
    image_service_pb2,
    image_service_pb2_grpc,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import duration_pb2
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.uapi_gateway.conftest import Platform
from tests.uapi_gateway.echo_service import echoing
from tests.uapi_gateway.pool_service import deployment
from tests.uapi_gateway.stand_ins import generate
from tests.waiting import eventually
from uapi_gateway.admin import Admin

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
_GENERATE = "uapi.v1.TextGenerationService/GenerateText"


async def fails(call: Any) -> errors.AgentError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return status.decode(caught.value)


def access(channel: aio.Channel) -> Any:
    return access_pb2_grpc.AccessServiceStub(channel)


async def create(platform: Platform, name: str, *agents: str, role: int = 0, expires_s: int = 0) -> str:
    request = access_pb2.CreateKeyRequest(name=name, role=role, agents=agents)  # type: ignore[arg-type]  # an enum
    if expires_s:
        request.expires_in.CopyFrom(duration_pb2.Duration(seconds=expires_s))
    answer = await access(platform.unix).CreateKey(request, timeout=10)
    return str(answer.secret)


async def revoke(platform: Platform, name: str) -> None:
    await access(platform.unix).RevokeKey(access_pb2.RevokeKeyRequest(key=name), timeout=10)


def bearer(secret: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {secret}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keys(platform: Platform) -> AsyncIterator[dict[str, str]]:
    """Keys for alpha by role, and one that administers."""
    made = {
        "caller": await create(platform, "caller", "alpha"),
        "operator": await create(platform, "operator", "alpha", role=access_pb2.ROLE_OPERATE),
        "admin": await create(platform, "admin", "*", role=access_pb2.ROLE_ADMINISTER),
    }
    yield made
    for name in made:
        await revoke(platform, name)


async def test_a_key_is_for_its_agents(platform: Platform, keys: dict[str, str]) -> None:
    for header in (bearer(keys["caller"]), ("x-api-key", keys["caller"])):
        assert "x" in await generate(platform.tcp, "x", header, agent="alpha")
        # A worker is its agent.
        assert await generate(platform.tcp, "x", header, agent="alpha-02") == "alpha-02: x"
        for agent in ("beta", "beta-01", "nowhere", "alpha-x", "alpha,beta"):
            error = await fails(generate(platform.tcp, "x", header, agent=agent))
            assert isinstance(error, errors.PermissionDenied)
            assert error.reason == "NOT_PERMITTED"
            assert error.message.startswith("key:caller may not call")
    assert await generate(platform.tcp, "x", bearer(keys["admin"]), agent="beta") == "beta-01: x"
    # Both serve it; of beta it is not told.
    error = await fails(generate(platform.tcp, "x", bearer(keys["caller"])))
    assert error.metadata["candidates"] == "alpha"


async def test_an_agent_hears_who_calls_and_never_the_credential(platform: Platform, keys: dict[str, str]) -> None:
    forged = [("x-uapi-principal", "local"), ("x-uapi-caller-key", "x"), ("x-uapi-for", "alpha")]
    heard = {
        "key:caller": await generate(platform.tcp, "headers", bearer(keys["caller"]), *forged, agent="alpha"),
        "key:admin": await generate(platform.unix, "headers", ("x-api-key", keys["admin"]), *forged, agent="beta"),
        "anonymous": await generate(platform.tcp, "headers", *forged, agent="beta"),
        "local": await generate(platform.unix, "headers", *forged, agent="beta"),
    }
    for principal, text in heard.items():
        told = dict(line.split(": ", 1) for line in text.splitlines())
        assert told["x-uapi-principal"] == repr(principal)
        ours = {name for name in told if name.startswith("x-uapi-")}
        assert ours == {"x-uapi-principal", "x-uapi-agent"}
        assert "uapi_ey" not in text
    token = ("authorization", f"Bearer {platform.home.token()}")
    assert "x-uapi-principal: 'local'" in await generate(platform.tcp, "headers", token, agent="beta")
    # A key beside a credential of the agent's own.
    both = await generate(
        platform.tcp, "headers", ("x-api-key", keys["caller"]), ("authorization", "Bearer own"), agent="alpha"
    )
    assert "Bearer own" in both


async def test_a_key_that_is_sent_twice_is_one(platform: Platform, keys: dict[str, str]) -> None:
    twice = (bearer(keys["caller"]), ("x-api-key", keys["caller"]))
    for channel in (platform.tcp, platform.unix):
        told = await generate(channel, "headers", *twice, agent="alpha")
        assert told.count("x-uapi-principal: 'key:caller'") == told.count("x-uapi-principal") == 1


def _forged(secret: str) -> dict[str, str]:
    """Keys that somebody made out of a good one."""
    header, claims, signature = secret.removeprefix("uapi_").split(".")
    content = json.loads(base64.urlsafe_b64decode(claims + "=="))
    encoded = base64.urlsafe_b64encode(json.dumps({**content, "sub": "local"}).encode()).decode().rstrip("=")
    none = base64.urlsafe_b64encode(b'{"alg":"none","kid":"' + content["jti"].encode() + b'"}').decode().rstrip("=")
    own = Ed25519PrivateKey.generate().sign(f"{header}.{claims}".encode())
    return {
        "tampered claims": f"uapi_{header}.{encoded}.{signature}",
        "tampered signature": f"uapi_{header}.{claims}.{'A' * len(signature)}",
        "no signature": f"uapi_{header}.{claims}.",
        "alg none": f"uapi_{none}.{claims}.",
        "signed by another": f"uapi_{header}.{claims}.{base64.urlsafe_b64encode(own).decode().rstrip('=')}",
        "cut off": secret[:-20],
        "nothing": "uapi_eyJ",
    }


async def test_keys_that_are_no_good(platform: Platform, keys: dict[str, str]) -> None:
    for what, secret in _forged(keys["caller"]).items():
        for channel in (platform.tcp, platform.unix):
            error = await fails(generate(channel, "x", bearer(secret), agent="alpha"))
            assert isinstance(error, errors.Unauthenticated), what
            assert error.reason == "CREDENTIAL_INVALID", what
    short = await create(platform, "short", "alpha", expires_s=1)
    assert await generate(platform.tcp, "x", bearer(short), agent="alpha")

    async def expired() -> bool:
        with contextlib.suppress(errors.AgentError, aio.AioRpcError):
            await generate(platform.tcp, "x", bearer(short), agent="alpha")
            return False
        return True

    await eventually(expired)
    assert (await fails(generate(platform.tcp, "x", bearer(short), agent="alpha"))).reason == "CREDENTIAL_INVALID"
    # Its name is free again.
    again = await create(platform, "short", "alpha")
    assert await generate(platform.tcp, "x", bearer(again), agent="alpha")
    error = await fails(create(platform, "short", "alpha"))
    assert isinstance(error, errors.AlreadyExists)
    await revoke(platform, "short")
    assert isinstance(await fails(generate(platform.tcp, "x", bearer(again), agent="alpha")), errors.Unauthenticated)
    assert isinstance(await fails(revoke(platform, "short")), errors.NotFound)


async def test_roles(platform: Platform, keys: dict[str, str]) -> None:
    pool = agent_pool_pb2_grpc.AgentPoolStub(platform.tcp)
    images = image_service_pb2_grpc.ImageServiceStub(platform.tcp)
    alpha = agent_pool_pb2.ListWorkersRequest(agent="alpha")
    beta = agent_pool_pb2.ListWorkersRequest(agent="beta")
    every = agent_pool_pb2.ListWorkersRequest()
    calls: list[tuple[Any, Any, set[str]]] = [
        (pool.ListWorkers, alpha, {"operator", "admin"}),
        (pool.ListWorkers, beta, {"admin"}),
        (pool.ListWorkers, every, {"operator", "admin"}),
        (images.ListImages, image_service_pb2.ListImagesRequest(), {"admin"}),
        (access(platform.tcp).ListKeys, access_pb2.ListKeysRequest(), {"admin"}),
    ]
    for method, request, allowed in calls:
        for name, secret in keys.items():
            call = method(request, metadata=(bearer(secret),), timeout=5)
            if name in allowed:
                # The pool of this test has no images.
                with contextlib.suppress(aio.AioRpcError):
                    await call
                assert await call.code() is not None
                assert "role" not in (await call.details() or "")
            else:
                error = await fails(call)
                assert isinstance(error, errors.PermissionDenied), (name, request)
                assert "role" in error.message
    own = await pool.ListWorkers(every, metadata=(bearer(keys["operator"]),), timeout=5)
    assert {worker.agent for worker in own.workers} == {"alpha"}
    # Without a credential it says what to do.
    error = await fails(pool.ListWorkers(every, timeout=5))
    assert (error.reason, "keys create" in error.message) == ("CREDENTIAL_MISSING", True)


async def test_the_pool_is_told_of_operators_of_some_agents(platform: Platform, keys: dict[str, str]) -> None:
    del platform.pool.of_some[:]
    wake = agent_pool_pb2.WakeAgentRequest(agent="alpha")
    for name in ("operator", "admin"):
        stub = agent_pool_pb2_grpc.AgentPoolStub(platform.tcp)
        await stub.WakeAgent(wake, metadata=(bearer(keys[name]),), timeout=10)
    await agent_pool_pb2_grpc.AgentPoolStub(platform.unix).WakeAgent(wake, timeout=10)
    assert platform.pool.of_some == [True, False, False]


async def test_who_may_not_call_an_agent_is_not_told_of_it(platform: Platform, keys: dict[str, str]) -> None:
    registry = agent_registry_pb2_grpc.AgentRegistryStub(platform.tcp)
    mine = (bearer(keys["caller"]),)
    listed = await registry.ListAgents(agent_registry_pb2.ListAgentsRequest(), metadata=mine, timeout=5)
    assert [agent.agent_id for agent in listed.agents] == ["alpha"]
    watch: Any = registry.WatchAgents(agent_registry_pb2.WatchAgentsRequest(), metadata=mine, timeout=5)
    assert [(await watch.read()).changed.agent_id, (await watch.read()).synced] == ["alpha", True]
    watch.cancel()
    health: Any = health_pb2_grpc.HealthStub(platform.tcp)
    gateway = agent_gateway_pb2_grpc.AgentGatewayStub(platform.tcp)
    for name in ("beta", "nowhere"):
        refused: list[Any] = [
            registry.GetAgent(agent_registry_pb2.GetAgentRequest(agent_id=name), metadata=mine, timeout=5),
            health.Check(health_pb2.HealthCheckRequest(service=name), metadata=mine, timeout=5),
            gateway.CallAgent(agent_gateway_pb2.CallAgentRequest(agent_id=name), metadata=mine, timeout=5),
        ]
        for call in refused:
            assert isinstance(await fails(call), errors.PermissionDenied), name
    for path in ("/no.Such/Method", "/uapi.v1.Unknown/Do"):
        unknown: Any = platform.tcp.unary_unary(path)
        assert isinstance(await fails(unknown(b"", metadata=mine, timeout=5)), errors.PermissionDenied)
    assert (
        await registry.GetAgent(agent_registry_pb2.GetAgentRequest(agent_id="alpha"), metadata=mine)
    ).agent.agent_id


async def test_a_call_by_the_gateway_is_its_callers(platform: Platform, keys: dict[str, str]) -> None:
    request = agent_gateway_pb2.CallAgentRequest(
        agent_id="alpha", service="uapi.v1.TextGenerationService", method="GenerateText"
    )
    request.data.update({"prompt": "headers"})
    for channel, metadata, principal in (
        (platform.tcp, (bearer(keys["caller"]),), "key:caller"),
        (platform.tcp, (), "anonymous"),
        (platform.unix, (), "local"),
    ):
        gateway = agent_gateway_pb2_grpc.AgentGatewayStub(channel)
        answer = await gateway.CallAgent(request, metadata=metadata, timeout=5)
        assert f"x-uapi-principal: '{principal}'" in str(answer.data["text"])


async def test_what_an_agent_demands(platform: Platform, keys: dict[str, str]) -> None:
    address = f"unix:{platform.tmp}/picky.sock"
    async with echoing(address, "picky-01"):
        wanted = agent_pool_pb2.AgentSettings(access=agent_pool_pb2.Access(keys=["admin"]))
        platform.pool.put(deployment("picky", {"picky-01": address}, settings=wanted))
        await platform.routed("picky")
        assert await generate(platform.tcp, "x", bearer(keys["admin"]), agent="picky")
        for name in ("picky", "picky-01"):
            error = await fails(generate(platform.tcp, "x", agent=name))
            assert (type(error), error.reason) == (errors.Unauthenticated, "CREDENTIAL_MISSING")
        # Two names are none: the rules and the routes must not take one each.
        for second in ("x-01", "alpha", "picky-01"):
            twice = (("x-uapi-agent", "picky"), ("x-uapi-agent", second))
            error = await fails(generate(platform.tcp, "x", *twice))
            assert (type(error), error.reason) == (errors.Unauthenticated, "CREDENTIAL_MISSING")
        everything = await create(platform, "everything", "*")
        assert isinstance(
            await fails(generate(platform.tcp, "x", bearer(everything), agent="picky")), errors.PermissionDenied
        )
        await revoke(platform, "everything")
        # Nobody gets in while it goes.
        platform.pool.remove("picky")
        assert isinstance(await fails(generate(platform.tcp, "x", agent="picky")), errors.Unauthenticated)


async def test_whoever_demands_what_nobody_has_is_told(platform: Platform, keys: dict[str, str]) -> None:
    pool = agent_pool_pb2_grpc.AgentPoolStub(platform.unix)
    for demanded, notes in (("admin", 0), ("mistyped", 1)):
        wanted = agent_pool_pb2.AgentSettings(access=agent_pool_pb2.Access(keys=[demanded]))
        request = agent_pool_pb2.RunAgentRequest(image="told:1", agent="told", settings=wanted)
        answer = await pool.RunAgent(request, timeout=10)
        assert [demanded in note for note in answer.deployment.notes] == [True] * notes
    platform.pool.remove("told")


async def refused(platform: Platform, secret: str) -> bool:
    try:
        await generate(platform.tcp, "x", bearer(secret), agent="beta", timeout_s=20)
    except aio.AioRpcError as error:
        return error.code() is grpc.StatusCode.UNAUTHENTICATED
    return False


async def test_no_valid_call_is_refused_while_keys_come_and_go(platform: Platform, keys: dict[str, str]) -> None:
    ended = asyncio.Event()
    calls = 0

    async def load() -> None:
        nonlocal calls
        while not ended.is_set():
            assert await generate(platform.tcp, "x", bearer(keys["caller"]), agent="alpha", timeout_s=20)
            calls += 1

    lanes = [asyncio.create_task(load()) for _ in range(4)]
    longest_s = 0.0
    try:
        for number in range(15):
            secret = await create(platform, f"passing-{number}", "beta")
            assert await generate(platform.tcp, "x", bearer(secret), agent="beta", timeout_s=20)
            began = time.monotonic()
            await revoke(platform, f"passing-{number}")
            # At once, but for a machine that is too busy to let Envoy's threads run.
            while not await refused(platform, secret):
                assert time.monotonic() - began < 1.0
            longest_s = max(longest_s, time.monotonic() - began)
    finally:
        ended.set()
    await asyncio.gather(*lanes)
    print(f"{calls} valid calls, none refused; a revoked key was refused after at most {longest_s * 1000:.0f} ms")
    assert calls > 20
    assert longest_s < 1.0


async def test_no_key_lies_anywhere(platform: Platform, keys: dict[str, str]) -> None:
    assert await generate(platform.tcp, "x", bearer(keys["caller"]), agent="alpha")
    signatures = [secret.rpartition(".")[2].encode() for secret in keys.values()]
    files = [path for path in platform.home.root.rglob("*") if path.is_file() and path != platform.home.token_file]
    assert any(path.name == "access.db" for path in files)
    dump = await Admin(platform.home.envoy_admin_socket).get("/config_dump")
    for content in (*(path.read_bytes() for path in files), dump.encode()):
        assert not any(signature in content for signature in signatures)
    assert platform.home.token_file.stat().st_mode & 0o777 == 0o600
    listed = await access(platform.unix).ListKeys(access_pb2.ListKeysRequest(), timeout=5)
    assert {key.name for key in listed.keys} == {"local", *keys}
    assert not any(signature in listed.SerializeToString() for signature in signatures)


async def test_grpcurl_with_and_without_a_credential(platform: Platform, keys: dict[str, str]) -> None:
    def grpcurl(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["grpcurl", "-plaintext", "-max-time", "20", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    async def whoami(*arguments: str) -> Any:
        address = platform.gateway.address
        done = await asyncio.to_thread(grpcurl, *arguments, address, "uapi.v1.AccessService/GetCaller")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert (await whoami())["principal"] == "anonymous"
    known = await whoami("-H", f"authorization: Bearer {keys['operator']}")
    assert known == {"principal": "key:operator", "grants": [{"role": "ROLE_OPERATE", "agents": ["alpha"]}]}
    wrong = ("-H", "authorization: Bearer uapi_eyJ.x.y", platform.gateway.address, "list")
    done = await asyncio.to_thread(grpcurl, *wrong)
    assert done.returncode != 0
    assert "credential is not valid" in done.stderr


async def test_what_is_on_this_machine_is_registered_by_its_user_alone(
    platform: Platform, keys: dict[str, str]
) -> None:
    key = await create(platform, "joining", "joiner", role=access_pb2.ROLE_OPERATE)
    registry = agent_registry_pb2_grpc.AgentRegistryStub(platform.tcp)

    def joining(endpoint: str, secret: str, health_check: str = "") -> Any:
        said = agent_registry_pb2.AgentRegistration(
            agent_id="joiner", services=["TextGenerationService"], endpoint=endpoint, health_check=health_check
        )
        request = agent_registry_pb2.RegisterAgentRequest(registration=said)
        return registry.RegisterAgent(request, metadata=(bearer(secret),), timeout=10)

    async with echoing("127.0.0.1:0", "joiner") as port:
        for secret in (key, keys["admin"]):
            for endpoint in (f"localhost:{port}", f"127.0.0.2:{port}", f"0.0.0.0:{port}", "unix:/run/any.sock"):
                error = await fails(joining(endpoint, secret))
                assert isinstance(error, errors.PermissionDenied), endpoint
                assert "only the platform's own user may register" in error.message
        error = await fails(joining("203.0.113.1:1", key, f"http://127.0.0.1:{port}/"))
        assert isinstance(error, errors.PermissionDenied)
        await joining(f"localhost:{port}", str(platform.home.token()))
        await registry.DeregisterAgent(
            agent_registry_pb2.DeregisterAgentRequest(agent_id="joiner"), metadata=(bearer(key),), timeout=10
        )
    await revoke(platform, "joining")
