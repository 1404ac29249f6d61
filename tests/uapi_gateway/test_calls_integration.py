"""Calls through a real Envoy: where they go, and what comes back."""

import asyncio

import grpc
import pytest
from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import text_generation_pb2 as text
from agentruntime._proto.uapi.v1 import text_generation_pb2_grpc
from grpc import aio

from tests.uapi_gateway.conftest import Platform
from tests.uapi_gateway.stand_ins import deployment, eventually, generate

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
    call = platform.tcp.stream_stream("/acme.v1.Chatter/Chat")(metadata=(("x-uapi-agent", "beta"),), timeout=5)
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
    assert "x-uapi-agent: 'beta'" in seen


async def test_ambiguous_service_names_its_candidates(platform: Platform) -> None:
    code, error = await failure(generate(platform.tcp, "x"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(error, errors.AgentAmbiguous)
    assert error.metadata["candidates"] == "alpha,beta"


async def test_unknown_service_and_method(platform: Platform) -> None:
    unary = platform.tcp.unary_unary("/acme.v1.Nothing/Do")
    code, error = await failure(unary(b"", timeout=5))
    assert (code, error.reason) == (grpc.StatusCode.UNIMPLEMENTED, "SERVICE_NOT_FOUND")
    for method in ("/uapi.v1.TextGenerationService/Nothing", "/acme.v1.Nothing/Do"):
        code, _ = await failure(
            platform.tcp.unary_unary(method)(b"", metadata=(("x-uapi-agent", "beta"),), timeout=5)
        )
        assert code is grpc.StatusCode.UNIMPLEMENTED
    code, _ = await failure(platform.tcp.unary_unary("/uapi.v1.AgentRegistry/Nothing")(b"", timeout=5))
    assert code is grpc.StatusCode.UNIMPLEMENTED


async def test_service_of_exactly_one_agent_needs_no_name(platform: Platform) -> None:
    address = platform.pool.deployments["beta"].workers[0].address
    platform.pool.put(deployment("chatty", {"chatty-01": address}, descriptors=b""))
    platform.pool.deployments["chatty"].services[:] = ["acme.v1.Chatter"]
    platform.pool.put(platform.pool.deployments["chatty"])
    chat = platform.tcp.stream_stream("/acme.v1.Chatter/Chat")

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


@pytest.mark.parametrize(
    ("given", "code"), [("1n", "4"), ("99999999H", "0"), ("0S", "4"), ("soon", None), ("-1S", None)]
)
async def test_absurd_deadlines_on_the_wire(platform: Platform, given: str, code: str | None) -> None:
    """Sent by curl, since a gRPC library would not."""
    found = await curl_grpc(platform, "grpc-timeout: " + given)
    print(found)
    if code is None:
        assert "grpc-status" in found
    else:
        assert found["grpc-status"] == code
    assert await generate(platform.tcp, "x", agent="beta") == "beta-01: x"


async def curl_grpc(platform: Platform, *headers: str) -> dict[str, str]:
    """One call of GenerateText(prompt="x") at beta by curl; its headers and trailers."""
    body = platform.tmp / "body"
    message = text.GenerateTextRequest(prompt="x").SerializeToString()
    body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    common = ["content-type: application/grpc", "te: trailers", "x-uapi-agent: beta", *headers]
    process = await asyncio.create_subprocess_exec(
        "curl", "-s", "--http2-prior-knowledge", "-m", "5", "-D", "-", "-o", "/dev/null", "--data-binary", f"@{body}",
        *(part for header in common for part in ("-H", header)),
        f"http://{platform.gateway.address}/uapi.v1.TextGenerationService/GenerateText",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    pairs = (line.partition(": ") for line in output.decode().splitlines() if ": " in line)
    return {key: value for key, _, value in pairs}
