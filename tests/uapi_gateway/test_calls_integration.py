"""Calls through a real Envoy: where they go, and what comes back."""

import asyncio
import contextlib
import json
from typing import Any

import grpc
import pytest
from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import text_generation_pb2 as text
from agentruntime._proto.uapi.v1 import text_generation_pb2_grpc
from grpc import aio

from tests.uapi_gateway.conftest import Platform
from tests.uapi_gateway.pool_service import deployment
from tests.uapi_gateway.stand_ins import generate
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


async def failure(call: object) -> tuple[grpc.StatusCode, errors.AgentError]:
    """How a call ends that must fail."""
    with pytest.raises(aio.AioRpcError) as caught:
        await call  # type: ignore[misc]  # any awaitable
    return caught.value.code(), status.decode(caught.value)


async def test_unary_passes_metadata_and_trailers(platform: Platform) -> None:
    stub = text_generation_pb2_grpc.TextGenerationServiceStub(platform.tcp)
    call = stub.GenerateText(text.GenerateTextRequest(prompt="hi"), metadata=(("x-uapi-agent", "beta"),), timeout=5)
    assert (await call).text == "beta-01: hi"
    assert ("x-answered-by", "beta-01") in tuple(await call.initial_metadata())
    trailers = dict(await call.trailing_metadata())
    assert trailers["x-trailer"] == "kept"
    assert trailers["x-blob-bin"] == b"\x00\xff"


async def test_agents_error_arrives_whole(platform: Platform) -> None:
    code, error = await failure(generate(platform.tcp, "fail", agent="beta"))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert isinstance(error, errors.InsufficientResources)
    assert (error.message, error.metadata) == ("no room", {"free": "0"})


async def test_server_stream(platform: Platform) -> None:
    stub = text_generation_pb2_grpc.TextGenerationServiceStub(platform.tcp)
    call = stub.StreamText(text.StreamTextRequest(prompt="a b c"), metadata=(("x-uapi-agent", "alpha"),), timeout=5)
    assert [piece.text async for piece in call] == ["a", "b", "c"]


async def test_own_protos_bidirectional_stream(platform: Platform) -> None:
    chat: Any = platform.tcp.stream_stream("/acme.v1.Chatter/Chat")
    call = chat(metadata=(("x-uapi-agent", "beta"),), timeout=5)
    for message in (b"1", b"2"):
        await call.write(message)
        assert await call.read() == b"echo " + message
    await call.done_writing()
    assert await call.read() is aio.EOF


async def test_a_worker_by_its_id(platform: Platform) -> None:
    for worker in ("alpha-01", "alpha-02"):
        assert await generate(platform.tcp, "x", agent=worker) == f"{worker}: x"


async def test_calls_spread_over_workers(platform: Platform) -> None:
    answers = await asyncio.gather(*(generate(platform.tcp, "x", agent="alpha") for _ in range(40)))
    assert set(answers) == {"alpha-01: x", "alpha-02: x"}


@pytest.mark.parametrize("name", ["nobody", "alpha-99", "UPPER", "a/b", "../control", "x" * 300, "%41", "'"])
async def test_unknown_agent(platform: Platform, name: str) -> None:
    code, error = await failure(generate(platform.tcp, "x", agent=name))
    assert code is grpc.StatusCode.NOT_FOUND
    assert isinstance(error, errors.AgentNotFound)
    assert error.message == f"agent '{name[:63]}' not found"


async def test_several_names_are_refused(platform: Platform) -> None:
    for channel in (platform.tcp, platform.unix):
        for first, second in (("beta", "alpha"), ("nobody", "beta"), ("beta", "x-01")):
            names = (("x-uapi-agent", first), ("x-uapi-agent", second))
            code, error = await failure(generate(channel, "x", *names))
            assert (code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "METADATA_INVALID")
            assert "more than one agent" in error.message


async def test_unknown_agent_is_refused_fast(platform: Platform) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(20):
        await failure(generate(platform.tcp, "x", agent="nobody"))
    assert (loop.time() - began) / 20 < 0.05


async def test_callers_own_cluster_is_ignored(platform: Platform) -> None:
    own = ("x-uapi-cluster", "pool")
    assert await generate(platform.tcp, "x", own, agent="beta") == "beta-01: x"
    code, _ = await failure(generate(platform.tcp, "x", own, agent="nobody"))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_callers_envoy_headers_are_removed(platform: Platform) -> None:
    smuggled = (
        ("x-envoy-retry-on", "5xx"),
        ("x-envoy-upstream-rq-timeout-ms", "1"),
        ("x-envoy-upstream-alt-stat-name", "a"),
    )
    seen = await generate(platform.tcp, "headers", *smuggled, agent="beta")
    assert "x-envoy" not in seen
    assert "x-uapi-cluster" not in seen
    assert "x-uapi-agent: 'beta'" in seen


async def test_ambiguous_service_names_its_candidates(platform: Platform) -> None:
    code, error = await failure(generate(platform.tcp, "x"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(error, errors.AgentAmbiguous)
    assert error.metadata["candidates"] == "alpha,beta"


async def test_unknown_service_and_method(platform: Platform) -> None:
    unary: Any = platform.tcp.unary_unary("/acme.v1.Nothing/Do")
    code, error = await failure(unary(b"", timeout=5))
    assert (code, error.reason) == (grpc.StatusCode.UNIMPLEMENTED, "SERVICE_NOT_FOUND")
    for method in ("/uapi.v1.TextGenerationService/Nothing", "/acme.v1.Nothing/Do"):
        unary = platform.tcp.unary_unary(method)
        code, _ = await failure(unary(b"", metadata=(("x-uapi-agent", "beta"),), timeout=5))
        assert code is grpc.StatusCode.UNIMPLEMENTED
    unary = platform.tcp.unary_unary("/uapi.v1.AgentRegistry/Nothing")
    code, _ = await failure(unary(b"", timeout=5))
    assert code is grpc.StatusCode.UNIMPLEMENTED


async def test_service_of_exactly_one_agent_needs_no_name(platform: Platform) -> None:
    address = platform.pool.deployments["beta"].workers[0].address
    platform.pool.put(deployment("chatty", {"chatty-01": address}, descriptors=b""))
    platform.pool.deployments["chatty"].services[:] = ["acme.v1.Chatter"]
    platform.pool.put(platform.pool.deployments["chatty"])
    chat: Any = platform.tcp.stream_stream("/acme.v1.Chatter/Chat")

    async def answered() -> bool:
        call = chat(iter([b"hi"]), timeout=5)
        try:
            return [m async for m in call] == [b"echo hi"]
        except aio.AioRpcError:
            return False

    await eventually(answered)
    platform.pool.remove("chatty")


async def test_oversized_message(platform: Platform) -> None:
    code, error = await failure(generate(platform.tcp, "x" * 5 * 2**20, agent="beta"))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger" in error.message


async def test_deadline_of_a_hanging_worker(platform: Platform) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    code, _ = await failure(generate(platform.tcp, "hang", agent="beta", timeout_s=0.3))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert loop.time() - began < 1


@pytest.mark.parametrize("given", ["1n", "0S", "99999999H", "soon", "-1S"])
async def test_absurd_deadlines_on_the_wire(platform: Platform, given: str) -> None:
    """Sent by curl, since a gRPC library would not; what Envoy refuses early may also end by a reset."""
    found = (await curl_grpc(platform, "grpc-timeout: " + given)).get("grpc-status")
    expected = {"1n": ("4", None, "0"), "0S": ("4", None, "0"), "99999999H": ("0",)}
    assert found in expected.get(given, ("3", None))
    await others_are_answered(platform)


async def others_are_answered(platform: Platform) -> None:
    """One caller's header may not fail the calls of others, with whom it shares the connection to the worker."""
    for deadline_s in (1, 5, 10**6, 3.3, 77, None, 10**5) * 3:
        assert await generate(platform.tcp, "x", agent="beta", timeout_s=deadline_s) == "beta-01: x"
    async with aio.insecure_channel(platform.gateway.address, compression=grpc.Compression.Gzip) as channel:
        assert await generate(channel, "x", agent="beta") == "beta-01: x"


@pytest.mark.parametrize(
    ("header", "statuses"),
    [
        ("grpc-encoding: bogus", ("3", None)),
        ("grpc-previous-rpc-attempts: many", ("0",)),
        ("grpc-retry-pushback-ms: soon", ("0",)),
        ("grpc-status: fine", ("0",)),
        ("lb-cost-bin: AA", ("0",)),
        ("grpc-accept-encoding: bogus", ("0",)),
        ("te: bogus", ("0",)),
    ],
)
async def test_headers_that_grpc_cannot_read_on_the_wire(
    platform: Platform, header: str, statuses: tuple[str | None, ...]
) -> None:
    for _ in range(3):
        assert (await curl_grpc(platform, header)).get("grpc-status") in statuses
    await others_are_answered(platform)


async def test_a_message_too_large_for_the_worker_is_its_callers_affair_only(platform: Platform) -> None:
    """On a new connection to the worker too, where its refusal is the first thing that the worker says."""
    for _ in range(5):
        with pytest.raises(aio.AioRpcError) as caught:
            await generate(platform.tcp, "x" * 5 * 2**20, agent="beta")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await others_are_answered(platform)


async def test_a_deadline_beyond_a_day_is_cut_to_a_day(platform: Platform) -> None:
    assert float(await generate(platform.tcp, "deadline", agent="beta", timeout_s=10**6)) < 24 * 3600 + 1


async def test_trace_passes_untouched_and_stands_in_the_access_log(platform: Platform) -> None:
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    seen = await generate(platform.tcp, "headers", ("traceparent", header), agent="beta")
    assert f"traceparent: '{header}'" in seen
    log = platform.home.logs / "envoy-access.log"
    line = await eventually(lambda: [line for line in log.read_text().splitlines() if header in line], 15)
    entry = json.loads(line[0])
    assert entry["agent"] == "beta"
    assert entry["method"] == "/uapi.v1.TextGenerationService/GenerateText"
    assert entry["grpc_status"] == "OK"


async def test_malformed_frames_hurt_nobody(platform: Platform) -> None:
    host, port = platform.gateway.address.split(":")
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for attack in (
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS hello
        preface + bytes(range(256)) * 40,
        preface + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + b"x" * 1000,  # DATA of 16 MB on no stream
        preface + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08",
    ):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(attack)
        writer.write_eof()
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
        writer.close()
    for body in (b"", b"\0", b"\0\xff\xff\xff\xff", b"\7\0\0\0\1x", b"\0\0\0\0\5hello", b"junk" * 100):
        await curl_grpc(platform, "grpc-timeout: 500m", body=body)
    assert (await curl_grpc(platform, "x-large: " + "x" * 70_000)).get("grpc-status") in ("8", None)
    assert platform.gateway.envoy_pid == platform.envoy_pid
    assert await generate(platform.tcp, "x", agent="beta") == "beta-01: x"


async def curl_grpc(platform: Platform, *headers: str, body: bytes | None = None) -> dict[str, str]:
    """One call of GenerateText at beta by curl, with that body or prompt "x"; its headers and trailers."""
    path = platform.tmp / "body"
    message = text.GenerateTextRequest(prompt="x").SerializeToString()
    path.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message if body is None else body)
    common = ["content-type: application/grpc", "te: trailers", "x-uapi-agent: beta", *headers]
    process = await asyncio.create_subprocess_exec(
        "curl", "-s", "--http2-prior-knowledge", "-m", "5", "-D", "-", "-o", "/dev/null", "--data-binary", f"@{path}",
        *(part for header in common for part in ("-H", header)),
        f"http://{platform.gateway.address}/uapi.v1.TextGenerationService/GenerateText",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    pairs = (line.partition(": ") for line in output.decode().splitlines() if ": " in line)
    return {key: value for key, _, value in pairs}
