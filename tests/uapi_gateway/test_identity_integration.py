"""Tokens of a real identity provider at the real Envoy."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import openai
import pytest
import pytest_asyncio
import yaml
from a2a.types import a2a_pb2
from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import (
    access_pb2,
    access_pb2_grpc,
    agent_gateway_pb2,
    agent_gateway_pb2_grpc,
    agent_pool_pb2,
    agent_pool_pb2_grpc,
)
from cryptography.hazmat.primitives import serialization
from grpc import aio

from tests.identity_provider import AUDIENCE, IdentityProvider, SigningKey, encoded, identity_provider, unsigned
from tests.uapi_gateway.echo_service import echoing
from tests.uapi_gateway.pool_service import PoolStandIn, deployment
from tests.uapi_gateway.stand_ins import Gateway, generate, private_home
from tests.waiting import eventually
from uapi_gateway import descriptors
from uapi_gateway.access.book import MOST_NAMED

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
INTERVAL_S = 0.3


class Stage:
    """A gateway with agents alpha, beta and chatty, which demands a client, and the provider.

    Callers without a credential may call, so that one with a bad credential is seen not to be taken for one of them.
    """

    def __init__(self, gateway: Gateway, provider: IdentityProvider) -> None:
        self.gateway = gateway
        self.provider = provider
        self.channel: aio.Channel

    def write(self, **changes: Any) -> None:
        corp = {"name": "corp", "issuer": self.provider.issuer, "audiences": [AUDIENCE], **changes}
        (self.gateway.home.root / "identity-providers.yaml").write_text(yaml.safe_dump({"providers": [corp]}))

    async def start(self) -> None:
        await self.gateway.start(UAPI_GATEWAY_JWKS_INTERVAL_S=str(INTERVAL_S))
        self.channel = self.gateway.channel()

    async def stop(self) -> None:
        await self.channel.close()
        self.gateway.stop()

    async def call(self, token: str, agent: str = "alpha") -> grpc.StatusCode:
        """How a call with a token ends."""
        try:
            await generate(self.channel, "hello", ("authorization", f"Bearer {token}"), agent=agent)
        except aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    async def taken(self, token: str, agent: str = "alpha") -> None:
        async def is_taken() -> bool:
            return await self.call(token, agent) is grpc.StatusCode.OK

        await eventually(is_taken)


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[0, MOST_NAMED], ids=["named in the rules", "by an expression"]
)
async def stage(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    tmp = tmp_path_factory.mktemp("identity")
    pool = PoolStandIn()
    for number in range(request.param):
        pool.put(deployment(f"a{number}", {}))
    async with contextlib.AsyncExitStack() as stack:
        home = stack.enter_context(private_home())
        provider = stack.enter_context(identity_provider())
        for agent in ("alpha", "beta", "chatty"):
            address = f"unix:{tmp}/{agent}.sock"
            await stack.enter_async_context(echoing(address, f"{agent}-01"))
            running = deployment(agent, {f"{agent}-01": address})
            if agent == "chatty":
                running.settings.access.oauth2_client_id = "chat"
            pool.put(running)
        await stack.enter_async_context(pool.serving(home))
        stage = Stage(Gateway(home), provider)
        stage.write()
        try:
            await stage.start()
            for agent in ("alpha", "beta"):
                await stage.taken(provider.token("uapi.call"), agent)
            yield stage
            await stage.channel.close()
        finally:
            stage.gateway.stop()


OK, UNKNOWN, DENIED = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("scope", "alpha", "beta"),
    [
        ("uapi.call", OK, OK),
        ("uapi.call:alpha", OK, DENIED),
        ("uapi.call:beta", DENIED, OK),
        ("uapi.operate:alpha", OK, DENIED),
        ("uapi.operate", OK, OK),
        ("uapi.administer", OK, OK),
        ("uapi.call:alpha uapi.call:beta", OK, OK),
        ("", DENIED, DENIED),
    ],
)
async def test_scopes_of_the_providers_own_tokens(
    stage: Stage, scope: str, alpha: grpc.StatusCode, beta: grpc.StatusCode
) -> None:
    token = stage.provider.token(scope)
    assert [await stage.call(token, agent) for agent in ("alpha", "beta")] == [alpha, beta]


async def test_a2a_over_grpc_looks_at_the_token_of_who_names_the_agent_in_the_metadata(stage: Stage) -> None:
    async def listed(scope: str, *more: tuple[str, str]) -> grpc.StatusCode:
        call = stage.channel.unary_unary(
            f"/{descriptors.A2A}/ListTasks", a2a_pb2.ListTasksRequest.SerializeToString, lambda read: read
        )
        request = a2a_pb2.ListTasksRequest() if more else a2a_pb2.ListTasksRequest(tenant="alpha")
        try:
            await call(request, metadata=(("authorization", f"Bearer {stage.provider.token(scope)}"), *more))
        except aio.AioRpcError as error:
            return error.code()
        return OK

    for more in ((), (("x-uapi-agent", "alpha"),)):
        assert await listed("uapi.call:alpha", *more) is OK
        assert await listed("uapi.call:beta", *more) is DENIED


async def test_claims(stage: Stage) -> None:
    now = int(time.time())
    signed = stage.provider.signed
    cases: list[tuple[dict[str, Any], grpc.StatusCode]] = [
        ({}, OK),
        ({"scope": None, "scp": ["x", "uapi.call:alpha"]}, OK),
        ({"scope": None, "roles": ["uapi.call:alpha"]}, OK),
        # A list's members are whole scopes.
        ({"scope": ["uapi.call uapi.x"]}, DENIED),
        ({"scope": "uapi.call:alph"}, DENIED),
        ({"scope": "uapi.call:alpha1"}, DENIED),
        ({"scope": {"uapi.call": True}}, DENIED),
        ({"scope": 'x","uapi.call'}, DENIED),
        ({"scope": None, "groups": ["uapi.call"]}, DENIED),
        ({"aud": "other"}, DENIED),
        ({"aud": ["other", AUDIENCE]}, OK),
        ({"aud": None}, DENIED),
        ({"iss": "http://127.0.0.1:1"}, UNKNOWN),
        ({"iss": "uapi"}, UNKNOWN),
        ({"iss": None}, UNKNOWN),
        ({"exp": now - 120}, UNKNOWN),
        ({"exp": None}, UNKNOWN),
        ({"nbf": now + 120}, UNKNOWN),
        # What would be misread in a header or a log.
        ({"sub": "ali\r\nx-uapi-principal: local"}, DENIED),
        ({"sub": "a\0b"}, DENIED),
        ({"sub": 'a"b'}, DENIED),
        ({"sub": "a b"}, DENIED),
        ({"sub": "älice"}, DENIED),
        ({"sub": "a" * 256}, DENIED),
        ({"sub": ""}, DENIED),
        ({"sub": ["alice"]}, UNKNOWN),
        ({"sub": "auth0|alice+x@example.com/a:b"}, OK),
    ]
    found = [(claims, await stage.call(signed(**claims))) for claims, _ in cases]
    # An audience that is not ours is no good credential either, but Envoy says so with another status.
    assert found == cases


async def test_signatures(stage: Stage) -> None:
    key = stage.provider.keys[0]
    claims = stage.provider.claims()
    good = stage.provider.signed()
    public = key.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for secret in (public, json.dumps(key.public).encode(), base64.urlsafe_b64decode(key.public["n"] + "==")):
        # As if the public key were a secret one that both sides have.
        head = unsigned(claims, {"alg": "HS256", "kid": key.kid})
        forged = f"{head}.{encoded(hmac.digest(secret, head.encode(), hashlib.sha256))}"
        assert await stage.call(forged) is UNKNOWN
    for algorithm in ("none", "None", "NONE", ""):
        head = unsigned(claims, {"alg": algorithm, "kid": key.kid})
        assert await stage.call(f"{head}.") is UNKNOWN
        assert await stage.call(f"{head}.{good.rpartition('.')[2]}") is UNKNOWN
    assert await stage.call(SigningKey(key.kid).sign(claims)) is UNKNOWN
    assert await stage.call(key.sign(claims, kid="another")) is UNKNOWN
    assert await stage.call(good[:-6] + "AAAAAA") is UNKNOWN
    for garbage in ("x", "x.y", "x.y.z", "....", "eyJhbGciOiJub25lIn0.e30."):
        assert await stage.call(garbage) is UNKNOWN
    # In a URL it would stand in logs.
    method = f"/uapi.v1.TextGenerationService/GenerateText?access_token={good}"
    in_the_url: Any = stage.channel.unary_unary(method)
    with pytest.raises(aio.AioRpcError):
        await in_the_url(b"", metadata=(("x-uapi-agent", "alpha"),), timeout=5)
    assert await stage.call(good) is OK


async def test_agents_are_told_the_principal_and_nothing_else(stage: Stage) -> None:
    metadata = (("authorization", f"Bearer {stage.provider.signed()}"), ("x-uapi-principal", "local"))
    got = await generate(stage.channel, "headers", *metadata, agent="alpha")
    assert "x-uapi-principal: 'oidc:corp:alice'" in got
    assert "authorization" not in got
    assert "x-uapi-caller" not in got


async def test_operating_needs_its_scope(stage: Stage) -> None:
    stub: agent_pool_pb2_grpc.AgentPoolAsyncStub = agent_pool_pb2_grpc.AgentPoolStub(stage.channel)

    async def operate(agent: str, scope: str) -> grpc.StatusCode:
        metadata = (("authorization", f"Bearer {stage.provider.token(scope)}"),)
        try:
            await stub.ListWorkers(agent_pool_pb2.ListWorkersRequest(agent=agent), metadata=metadata, timeout=5)
        except aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    assert await operate("alpha", "uapi.call") is DENIED
    assert await operate("alpha", "uapi.operate:alpha") is OK
    assert await operate("beta", "uapi.operate:alpha") is DENIED
    assert await operate("beta", "uapi.administer") is OK


async def test_calls_by_the_gateway_for_a_caller_are_checked_as_its_own(stage: Stage) -> None:
    stub: agent_gateway_pb2_grpc.AgentGatewayAsyncStub = agent_gateway_pb2_grpc.AgentGatewayStub(stage.channel)
    request = agent_gateway_pb2.CallAgentRequest(service="TextGenerationService", method="GenerateText")
    request.data.update({"prompt": "hello"})
    for agent, expected in (("alpha", OK), ("beta", DENIED)):
        request.agent_id = agent
        metadata = (("authorization", f"Bearer {stage.provider.token('uapi.call:alpha')}"),)
        try:
            await stub.CallAgent(request, metadata=metadata, timeout=5)
            found = grpc.StatusCode.OK
        except aio.AioRpcError as error:
            found = error.code()
        assert found is expected


async def test_an_agent_that_demands_a_client(stage: Stage) -> None:
    chat = stage.provider.token("uapi.call", client="chat", secret="chat-secret")
    assert await stage.call(chat, "chatty") is OK
    assert await stage.call(stage.provider.token("uapi.call"), "chatty") is DENIED
    assert await stage.call(stage.provider.signed(azp="chat"), "chatty") is OK
    assert await stage.call(stage.provider.signed(aud=[AUDIENCE, "chat"]), "chatty") is OK
    assert await stage.call(stage.provider.signed(azp="chat x"), "chatty") is DENIED
    # The client alone is not enough.
    assert await stage.call(stage.provider.signed(azp="chat", scope="uapi.call:alpha"), "chatty") is DENIED


async def test_a_refusal_speaks_of_what_the_caller_has(stage: Stage) -> None:
    async def told(*metadata: tuple[str, str], agent: str = "alpha") -> errors.AgentError:
        with pytest.raises(aio.AioRpcError) as caught:
            await generate(stage.channel, "hello", *metadata, agent=agent)
        return status.decode(caught.value)

    # Not that an API key is no token of a provider.
    for metadata in (("authorization", "Bearer uapi_eyJ.x.y"), ("x-api-key", "uapi_eyJ.x.y")):
        error = await told(metadata)
        assert error.reason == "CREDENTIAL_INVALID"
        assert "Jwt" not in error.message
    expired = stage.provider.signed(exp=int(time.time()) - 120)
    assert "expired" in (await told(("authorization", f"Bearer {expired}"))).message
    # Not that a token should be for other agents of an API key.
    token = ("authorization", f"Bearer {stage.provider.token('uapi.call:beta')}")
    error = await told(token)
    assert (error.reason, "keys create" in error.message) == ("NOT_PERMITTED", False)
    assert "agent whoami" in error.message
    # No API key is good for an agent that demands a client.
    error = await told(agent="chatty")
    assert (error.reason, "agent login" in error.message) == ("CREDENTIAL_MISSING", True)


async def test_what_is_told_of_providers(stage: Stage) -> None:
    async def listed(*metadata: tuple[str, str]) -> access_pb2.ListIdentityProvidersResponse:
        stub: access_pb2_grpc.AccessServiceAsyncStub = access_pb2_grpc.AccessServiceStub(stage.channel)
        return await stub.ListIdentityProviders(
            access_pb2.ListIdentityProvidersRequest(), metadata=metadata, timeout=5
        )

    # Nobody in particular, for that is who logs in.
    (told,) = (await listed()).providers
    assert (told.name, told.issuer, list(told.audiences), told.keys) == ("corp", stage.provider.issuer, [AUDIENCE], 0)
    (told,) = (await listed(("authorization", f"Bearer {stage.provider.token('uapi.operate')}"))).providers
    assert (told.keys, told.error) == (1, "")
    assert told.fetched_at.ToSeconds() > time.time() - 60


async def test_clients_of_the_openai_api(stage: Stage) -> None:
    async def models(credential: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{stage.gateway.http_address}/v1", api_key=credential) as client:
            return [model.id async for model in client.models.list()]

    # They cannot send none.
    assert {"alpha", "beta"} <= set(await models("sk-none"))
    assert await models(stage.provider.token("uapi.call:beta")) == ["beta"]
    for bad in ("a.b.c", stage.provider.token("uapi.call")[:-8], "uapi_a.b.c"):
        with pytest.raises(openai.AuthenticationError):
            await models(bad)
    async with openai.AsyncOpenAI(
        base_url=f"{stage.gateway.http_address}/v1", api_key=stage.provider.token("uapi.call:beta")
    ) as client:
        said = await client.chat.completions.create(model="beta", messages=[{"role": "user", "content": "hello"}])
        assert "hello" in (said.choices[0].message.content or "")
        with pytest.raises(openai.PermissionDeniedError, match="does not have the role call for agent 'alpha'"):
            await client.responses.create(model="alpha", input="hello")


async def test_whom_a_token_makes_its_caller(stage: Stage) -> None:
    stub: access_pb2_grpc.AccessServiceAsyncStub = access_pb2_grpc.AccessServiceStub(stage.channel)
    metadata = (("authorization", f"Bearer {stage.provider.token('uapi.call:alpha uapi.operate:alpha')}"),)
    caller = await stub.GetCaller(access_pb2.GetCallerRequest(), metadata=metadata, timeout=5)
    assert caller.principal == "oidc:corp:ci"
    assert [(grant.role, list(grant.agents)) for grant in caller.grants] == [
        (access_pb2.ROLE_CALL, ["alpha"]),
        (access_pb2.ROLE_OPERATE, ["alpha"]),
    ]


async def test_a_providers_own_roles(stage: Stage) -> None:
    staff = stage.provider.signed(scope=None, groups=["staff"])
    team = stage.provider.signed(scope=None, groups=["team-a", "else"])
    stage.write(scope_claims=["groups"], grants={"staff": "uapi.call", "team-a": ["uapi.call:alpha"]})
    await stage.taken(staff, "beta")
    assert [await stage.call(team, agent) for agent in ("alpha", "beta")] == [OK, DENIED]
    # With a mapping, only that counts.
    assert await stage.call(stage.provider.signed(), "alpha") is DENIED
    stage.write()
    await stage.taken(stage.provider.signed(), "alpha")
    assert await stage.call(team, "alpha") is DENIED


async def test_the_provider_goes_away_and_the_gateway_starts_without_it(stage: Stage) -> None:
    token = stage.provider.token("uapi.call")
    stage.provider.stop()
    await asyncio.sleep(2 * INTERVAL_S)
    assert await stage.call(token) is OK
    await stage.stop()
    # With the keys that were kept.
    await stage.start()
    await stage.taken(token)
    await stage.stop()
    # And without them: refused, and not taken for somebody without a credential.
    for kept in (stage.gateway.home.state / "jwks").iterdir():
        kept.unlink()
    await stage.start()
    assert await stage.call(token) is UNKNOWN
    stage.provider.start()
    await stage.taken(token)


async def test_rotation_under_load_refuses_no_valid_call(stage: Stage) -> None:
    refused: list[grpc.StatusCode] = []
    calls = 0
    tokens = [stage.provider.token("uapi.call")]
    done = asyncio.Event()

    async def load() -> None:
        nonlocal calls
        while not done.is_set():
            code = await stage.call(tokens[-1])
            calls += 1
            if code is not OK:
                refused.append(code)

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(load())
        for number in range(3):
            old, new = stage.provider.keys[0], SigningKey(f"rotated-{number}")
            # Published before it signs, as providers do: one interval is enough.
            stage.provider.publish(old, new)
            await stage.taken(new.sign(stage.provider.claims()))
            stage.provider.publish(new, old)
            tokens.append(await asyncio.to_thread(stage.provider.token, "uapi.call"))
            await asyncio.sleep(INTERVAL_S)
            stage.provider.publish(new)
            before = calls

            def went_on(before: int = before) -> bool:
                return calls > before + 50

            await eventually(went_on)
        done.set()
    assert not refused
    assert calls > 150

    # The first key is gone, and so is what it signed.
    async def is_refused() -> bool:
        return await stage.call(tokens[0]) is UNKNOWN

    await eventually(is_refused)


async def test_a_provider_that_is_taken_out(stage: Stage) -> None:
    stub: access_pb2_grpc.AccessServiceAsyncStub = access_pb2_grpc.AccessServiceStub(stage.channel)
    token = stage.provider.token("uapi.administer")

    async def principal() -> str:
        metadata = (("authorization", f"Bearer {token}"),)
        return (await stub.GetCaller(access_pb2.GetCallerRequest(), metadata=metadata, timeout=5)).principal

    assert await principal() == "oidc:corp:ci"
    (stage.gateway.home.root / "identity-providers.yaml").write_text("providers: []")

    # Nobody reads it any more.
    async def is_nobody() -> bool:
        return await principal() == "anonymous"

    await eventually(is_nobody)
