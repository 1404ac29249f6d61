"""TLS at a real Envoy: who gets in, what stays out, and certificates that change under load."""

import asyncio
import contextlib
import functools
import itertools
import json
import ssl
import statistics
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import access_pb2, access_pb2_grpc, agent_registry_pb2_grpc, text_generation_pb2_grpc
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_proto
from agentruntime._proto.uapi.v1 import text_generation_pb2 as text
from agentruntime.certificates import GATEWAY, POOL
from cryptography import x509
from grpc import aio

from tests.certificates import Made, authority, issued
from tests.uapi_gateway.echo_service import echoing
from tests.uapi_gateway.pool_service import PoolStandIn, deployment
from tests.uapi_gateway.stand_ins import Gateway, generate, private_home
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
NAMES = "DNS:localhost,IP:127.0.0.1"


class Secured:
    """A gateway with TLS, and the authority that it and its callers know."""

    def __init__(self, gateway: Gateway, directory: Path, ca: Made) -> None:
        self.gateway = gateway
        self.directory = directory
        self.ca = ca
        self.cert, self.key = directory / "tls.pem", directory / "tls-key.pem"
        self._numbers = itertools.count()
        own = issued(directory, ca, "gateway", f"URI:{GATEWAY}")
        self.environment = {
            "UAPI_GATEWAY_TLS_CERT": str(self.cert),
            "UAPI_GATEWAY_TLS_CA": str(ca.cert),
            "UAPI_GATEWAY_CLIENT_CERT": str(own.cert),
            "UAPI_GATEWAY_CLIENT_KEY": str(own.key),
        }

    def new(self, name: str = "") -> Made:
        """A certificate for this machine, not in use yet."""
        return issued(self.directory, self.ca, name or f"server-{next(self._numbers)}", NAMES)

    def install(self, made: Made) -> None:
        """As `cp` would: one after the other, and neither at once."""
        self.key.write_bytes(made.key.read_bytes())
        self.cert.write_bytes(made.cert.read_bytes())

    def channel(self, own: Made | None = None) -> aio.Channel:
        credentials = grpc.ssl_channel_credentials(
            self.ca.cert.read_bytes(),
            own.key.read_bytes() if own else None,
            own.cert.read_bytes() if own else None,
        )
        options = [("grpc.use_local_subchannel_pool", 1)]
        return aio.secure_channel(self.gateway.address, credentials, options=options)

    async def shown(self) -> int:
        """The serial number of the certificate that a new connection sees."""
        host, _, port = self.gateway.address.rpartition(":")
        context = ssl.create_default_context(cafile=str(self.ca.cert))
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        try:
            der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        finally:
            writer.close()
            await writer.wait_closed()
        return x509.load_der_x509_certificate(der).serial_number

    def refusals(self) -> int:
        """How often the gateway has said that it does not take a new certificate."""
        return (self.gateway.home.root / "gateway.log").read_text().count("refused, the old one stays")

    def refused_since(self, before: int) -> bool:
        return self.refusals() > before

    async def waiting(self) -> bool:
        """Whether a call waits in the relay."""
        url = self.gateway.http_address + "/metrics"
        _, page = await self.run("curl", "-s", "--cacert", str(self.ca.cert), url)
        return 'uapi_relay_queued{agent="outside"} 1.0' in page

    async def run(self, *argv: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode()


def serial(made: Made) -> int:
    return x509.load_pem_x509_certificate(made.cert.read_bytes()).serial_number


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secured(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Secured]:
    tmp = tmp_path_factory.mktemp("tls")
    pool = PoolStandIn()
    async with contextlib.AsyncExitStack() as stack:
        home = stack.enter_context(private_home())
        gateway = Gateway(home)
        made = Secured(gateway, tmp, authority(tmp))
        made.install(made.new())
        await stack.enter_async_context(echoing(f"unix:{tmp}/a.sock", "alpha-01"))
        pool.put(deployment("alpha", {"alpha-01": f"unix:{tmp}/a.sock"}))
        await stack.enter_async_context(pool.serving(home))
        try:
            await gateway.start(**made.environment)
            async with gateway.channel(unix=True) as channel:

                async def answers() -> bool:
                    with contextlib.suppress(aio.AioRpcError):
                        return bool(await generate(channel, "x", agent="alpha"))
                    return False

                await eventually(answers)
            yield made
        finally:
            gateway.stop()


async def test_grpcurl_needs_the_authority(secured: Secured) -> None:
    address, ca = secured.gateway.address, str(secured.ca.cert)
    status, output = await secured.run("grpcurl", "-cacert", ca, address, "list")
    assert (status, "uapi.v1.TextGenerationService" in output) == (0, True)
    status, output = await secured.run("grpcurl", address, "list")
    assert status != 0
    assert "x509" in output
    status, _ = await secured.run("grpcurl", "-plaintext", "-connect-timeout", "2", address, "list")
    assert status != 0


async def test_a_caller_s_certificate_is_verified_where_one_is_shown(secured: Secured, tmp_path: Path) -> None:
    address, ca = secured.gateway.address, str(secured.ca.cert)
    other = authority(tmp_path, "Other CA")
    uri = "URI:spiffe://agentruntime/client/ci"
    good, expired, foreign = (
        issued(tmp_path, by, name, uri, expired=name == "expired")
        for name, by in (("good", secured.ca), ("expired", secured.ca), ("foreign", other))
    )
    status, output = await secured.run(
        "grpcurl", "-cacert", ca, "-cert", str(good.cert), "-key", str(good.key), address, "list"
    )
    assert status == 0, output
    async with secured.channel(good) as channel:
        assert await generate(channel, "hi", agent="alpha") == "alpha-01: hi"
    for own in (expired, foreign):
        async with secured.channel(own) as channel:
            with pytest.raises(aio.AioRpcError) as refused:
                await generate(channel, "hi", agent="alpha")
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_tls_below_1_2_is_refused(secured: Secured) -> None:
    outcomes = {}
    for version in ("tls1_1", "tls1_2", "tls1_3"):
        # Debian's own level would not offer the old one at all.
        status, _ = await secured.run(
            "openssl", "s_client", f"-{version}", "-cipher", "ALL:@SECLEVEL=0", "-connect", secured.gateway.address,
            "-CAfile", str(secured.ca.cert), "-verify_return_error",
        )  # fmt: skip
        outcomes[version] = status == 0
    assert outcomes == {"tls1_1": False, "tls1_2": True, "tls1_3": True}


async def test_a_caller_cannot_say_whose_certificate_it_has(secured: Secured) -> None:
    async with secured.channel() as channel:
        said = ("x-forwarded-client-cert", "URI=spiffe://agentruntime/agent/alpha")
        assert "forwarded-client-cert" not in await generate(channel, "headers", said, agent="alpha")


@pytest.mark.parametrize("version", ["1.1", "2"])
async def test_the_http_port_speaks_tls_and_knows_no_other_site(secured: Secured, version: str) -> None:
    url = secured.gateway.http_address + "/health"
    assert url.startswith("https://")
    trust = ["curl", "-s", "-m", "5", f"--http{version}", "--cacert", str(secured.ca.cert)]
    for headers, wanted in (
        ([], f"200 {version}"),
        (["-H", "origin: https://evil.example"], f"403 {version}"),
        (["-H", "host: agents.example.com"], f"200 {version}"),
    ):
        form = ["-o", "/dev/null", "-w", "%{http_code} %{http_version}"]
        assert await secured.run(*trust, *form, *headers, url) == (0, wanted)
    assert (await secured.run("curl", "-s", "-m", "5", url))[0] == 60  # CURLE_PEER_FAILED_VERIFICATION


async def test_a_certificate_that_changes_under_load_fails_nothing(secured: Secured) -> None:
    ended = asyncio.Event()
    done = {"calls": 0, "connections": 0, "streams": 0}

    async def call() -> None:
        async with secured.channel() as channel:
            while not ended.is_set():
                await generate(channel, "hi", agent="alpha", timeout_s=30)
                done["calls"] += 1

    async def connect() -> None:
        while not ended.is_set():
            async with secured.channel() as channel:
                await generate(channel, "hi", agent="alpha", timeout_s=30)
                done["connections"] += 1

    async def stream() -> None:
        words = [str(number) for number in range(100)]
        async with secured.channel() as channel:
            stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
            while not ended.is_set():
                request = text.StreamTextRequest(prompt=" ".join(words), temperature=0.03)
                pieces = stub.StreamText(request, metadata=(("x-uapi-agent", "alpha"),), timeout=60)
                assert [piece.text async for piece in pieces] == words
                done["streams"] += 1

    envoy = secured.gateway.envoy_pid
    took_s = []
    async with asyncio.TaskGroup() as group:
        for work in (call, call, connect, connect, stream, stream, stream):
            group.create_task(work())
        for _ in range(5):
            made = secured.new()
            began = time.monotonic()
            secured.install(made)

            async def renewed(wanted: int = serial(made)) -> bool:
                return await secured.shown() == wanted

            await eventually(renewed)
            took_s.append(time.monotonic() - began)
        # One that is half written, and one that has another's key, change nothing.
        used = secured.cert.read_bytes()
        for wrong in (used[: len(used) // 2], secured.new().cert.read_bytes()):
            before = secured.refusals()
            secured.cert.write_bytes(wrong)
            await eventually(functools.partial(secured.refused_since, before))
            assert await secured.shown() == serial(made)
        secured.cert.write_bytes(used)
        ended.set()
    assert min(done.values()) > 0, done
    # The files are looked at every second.
    assert statistics.median(took_s) < 2.0, took_s
    assert secured.gateway.envoy_pid == envoy


async def test_a_new_certificate_is_no_other_configuration(secured: Secured) -> None:
    """A gateway that finds another one when it starts again takes the running Envoy over."""
    envoy = secured.gateway.envoy_pid
    async with secured.channel() as channel:
        assert await generate(channel, "hi", agent="alpha")
        secured.gateway.kill()
        made = secured.new()
        secured.install(made)
        await secured.gateway.start(**secured.environment)
        assert await generate(channel, "hi", agent="alpha")
    assert secured.gateway.envoy_pid == envoy

    async def renewed() -> bool:
        return await secured.shown() == serial(made)

    await eventually(renewed)
    announced = json.loads(secured.gateway.file.read_text())
    assert announced["tls"] == {
        "cert": str(secured.cert), "key": str(secured.key), "ca": str(secured.ca.cert),
    }  # fmt: skip


async def test_a_certificate_says_who_calls(secured: Secured, tmp_path: Path) -> None:
    """The principal that the worker is told; what only looks like another's is none of another's."""
    for number, (sans, principal) in enumerate(
        (
            ("URI:spiffe://agentruntime/client/ci", "cert:spiffe://agentruntime/client/ci"),
            ("URI:local", "cert:local"),
            ("URI:agent:alpha", "cert:agent:alpha"),
            (
                "URI:spiffe://agentruntime/agent/alpha,URI:spiffe://agentruntime/agent/beta",
                "cert:spiffe://agentruntime/agent/alpha,spiffe://agentruntime/agent/beta",
            ),
            # Without a URI name, it is nobody's.
            ("DNS:ci.example", "anonymous"),
        )
    ):
        own = issued(tmp_path, secured.ca, f"own-{number}", sans)
        async with secured.channel(own) as channel:
            spoofed = (("x-uapi-principal", "local"), ("x-uapi-caller-certificate", "cert:spoofed"))
            told = await generate(channel, "headers", *spoofed, agent="alpha")
        assert f"x-uapi-principal: {principal!r}" in told.splitlines()
        assert "x-uapi-caller" not in told
    # As agent alpha it may call itself, as beta what beta's permissions say: nothing. Each may ask who it is.
    own = issued(tmp_path, secured.ca, "alpha", "URI:spiffe://agentruntime/agent/alpha")
    async with secured.channel(own) as channel:
        assert await generate(channel, "x", agent="alpha") == "alpha-01: x"
        assert await caller(channel) == ("agent:alpha", ["alpha"])
    # And the pool is there to be called.
    for name, uri in (("agents", "spiffe://agentruntime/agent/beta"), ("pool", POOL)):
        async with secured.channel(issued(tmp_path, secured.ca, name, f"URI:{uri}")) as channel:
            with pytest.raises(aio.AioRpcError) as refused:
                await generate(channel, "x", agent="alpha")
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            principal, _ = await caller(channel)
            assert principal in ("agent:beta", f"cert:{POOL}")


async def caller(channel: aio.Channel) -> tuple[str, list[str]]:
    """Whom the gateway takes a caller for, and which agents it may call."""
    stub: access_pb2_grpc.AccessServiceAsyncStub = access_pb2_grpc.AccessServiceStub(channel)
    found = await stub.GetCaller(access_pb2.GetCallerRequest(), timeout=5)
    return found.principal, [agent for grant in found.grants for agent in grant.agents]


async def allowed(call: Awaitable[Any]) -> Any:
    """What it is answered; None if the caller may not."""
    try:
        return await call
    except aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.PERMISSION_DENIED:
            return None
        raise


async def test_a_certificate_may_do_what_was_granted_to_it(secured: Secured, tmp_path: Path) -> None:
    """For the very next call, over connections that were open before; and the gateway looks by the same grants."""
    uri = "spiffe://agentruntime/client/granted"
    own = issued(tmp_path, secured.ca, "granted", f"URI:{uri}")
    http = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", str(secured.ca.cert)]
    http += ["--cert", str(own.cert), "--key", str(own.key), secured.gateway.http_address + "/metrics"]
    async with secured.gateway.channel(unix=True) as unix, secured.channel(own) as channel:
        administrator, caller = (access_pb2_grpc.AccessServiceStub(each) for each in (unix, channel))
        registry = agent_registry_pb2_grpc.AgentRegistryStub(channel)

        async def grant(role: int, *agents: str, of: str = uri) -> None:
            wanted = access_pb2.SetCertificateGrantRequest(uri=of, role=role, agents=agents)  # type: ignore[arg-type]  # an enum
            await administrator.SetCertificateGrant(wanted, timeout=20)

        async def may() -> tuple[bool, list[tuple[int, list[str]]], int]:
            """Whether it may call alpha; what it is told; how many agents it sees."""
            called = await allowed(generate(channel, "x", agent="alpha"))
            told = await caller.GetCaller(access_pb2.GetCallerRequest())
            assert told.principal == f"cert:{uri}"
            listed = await allowed(registry.ListAgents(registry_proto.ListAgentsRequest()))
            grants = [(int(each.role), list(each.agents)) for each in told.grants]
            return bool(called), grants, len(listed.agents) if listed else 0

        call, operate, nothing = access_pb2.ROLE_CALL, access_pb2.ROLE_OPERATE, access_pb2.ROLE_UNSPECIFIED
        by_default = (True, [(call, ["*"])], 1)
        assert await may() == by_default
        await grant(call, "beta")
        assert await may() == (False, [(call, ["beta"])], 0)
        await grant(operate, "alpha")
        assert await may() == (True, [(operate, ["alpha"])], 1)
        assert (await secured.run(*http))[1] == "403"
        await grant(operate, "*")
        assert (await secured.run(*http))[1] == "200"
        # It may not give itself more.
        with pytest.raises(aio.AioRpcError) as refused:
            await caller.SetCertificateGrant(access_pb2.SetCertificateGrantRequest(uri=uri), timeout=20)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        await grant(nothing)
        assert await may() == (False, [], 0)
        await grant(nothing, of="*")
        now = await administrator.RemoveCertificateGrant(
            access_pb2.RemoveCertificateGrantRequest(uri=uri), timeout=20
        )
        assert (now.now.uri, list(now.now.agents)) == ("*", [])
        assert await may() == (False, [], 0)
        await administrator.RemoveCertificateGrant(access_pb2.RemoveCertificateGrantRequest(uri="*"), timeout=20)
        assert await may() == by_default
        with pytest.raises(aio.AioRpcError) as none:
            await administrator.RemoveCertificateGrant(access_pb2.RemoveCertificateGrantRequest(uri="*"), timeout=20)
        assert none.value.code() is grpc.StatusCode.NOT_FOUND


def mutual(made: Made, ca: Made) -> grpc.ServerCredentials:
    """Of a server that wants its callers' certificates."""
    pair = (made.key.read_bytes(), made.cert.read_bytes())
    return grpc.ssl_server_credentials([pair], ca.cert.read_bytes(), require_client_auth=True)


async def test_an_agent_from_outside_is_called_with_mutual_tls(secured: Secured, tmp_path: Path) -> None:
    other = authority(tmp_path, "Other CA")
    right = secured.new("outside")
    wrong_name = issued(tmp_path, secured.ca, "elsewhere", "DNS:elsewhere.example")
    foreign = issued(tmp_path, other, "foreign-server", NAMES)
    async with secured.gateway.channel(unix=True) as channel:
        registry = agent_registry_pb2_grpc.AgentRegistryStub(channel)

        async def register(port: int) -> None:
            said = registry_proto.AgentRegistration(
                agent_id="outside", services=["TextGenerationService"], endpoint=f"https://localhost:{port}"
            )
            await registry.RegisterAgent(registry_proto.RegisterAgentRequest(registration=said))

        for made, words in ((wrong_name, "Hostname mismatch"), (foreign, "unable to get local issuer")):
            async with echoing("127.0.0.1:0", "outside", mutual(made, secured.ca)) as port:
                with pytest.raises(aio.AioRpcError) as refused:
                    await register(port)
                failure = status.decode(refused.value)
                assert isinstance(failure, errors.FailedPrecondition)
                assert words in failure.message
        async with echoing("127.0.0.1:0", "outside", mutual(right, secured.ca)) as port:
            await register(port)

            async def answers() -> bool:
                with contextlib.suppress(aio.AioRpcError):
                    return await generate(channel, "hi", agent="outside") == "outside: hi"
                return False

            await eventually(answers)
        # While it is away a call waits in the relay, which makes it once it is back.
        held = asyncio.create_task(generate(channel, "held", agent="outside", timeout_s=20))
        await eventually(secured.waiting)
        async with echoing(f"127.0.0.1:{port}", "outside", mutual(right, secured.ca)):
            assert await held == "outside: held"
