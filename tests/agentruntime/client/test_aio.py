"""`AsyncClient` against a real server."""

import asyncio

import grpc
import pytest
from agentruntime import AsyncClient, errors
from agentruntime._proto.uapi.v1 import text_generation_pb2

from tests.agentruntime.client.test_dynamic import REQUEST
from tests.agentruntime.client.test_registration import DATA
from tests.agentruntime.client.test_sync import LOST, NOT_READY, kinds
from tests.agentruntime.platform_services import Record


async def test_a_call_has_deadline_trace_agent_and_token(endpoint: str, record: Record) -> None:
    async with AsyncClient(endpoint, "secret") as client:
        assert (await client.generate_text("my-agent", "hi")).text == "echo: hi"
    assert record.time_remaining_s == pytest.approx(30, abs=5)
    assert record.metadata["x-uapi-agent"] == "my-agent"
    assert record.metadata["authorization"] == "Bearer secret"
    assert record.metadata["traceparent"].startswith("00-")


async def test_streams(endpoint: str) -> None:
    async with AsyncClient(endpoint) as client:
        assert [piece.text async for piece in client.stream_text("my-agent", "a b c")] == ["a ", "b ", "c "]


async def test_errors_are_ours(endpoint: str, record: Record) -> None:
    record.raises["GenerateText"] = errors.AgentNotFound("my-agent")
    async with AsyncClient(endpoint) as client:
        with pytest.raises(errors.AgentNotFound, match="agent 'my-agent' not found"):
            await client.generate_text("my-agent", "x")
        with pytest.raises(errors.Unavailable) as cut:
            _ = [piece async for piece in client.stream_text("my-agent", "a cut")]
        assert cut.value.reason == "WORKER_LOST"


async def test_nobody_there() -> None:
    async with AsyncClient("127.0.0.1:1", timeout_s=0.5) as client:
        with pytest.raises(errors.Unavailable, match=r"nothing answered at 127.0.0.1:1 within 0.5"):
            await client.generate_text("my-agent", "x")
        with pytest.raises(errors.Unavailable, match="nothing answered"):
            await client.await_connection(0.1)


async def test_what_may_be_repeated_is(endpoint: str, record: Record) -> None:
    async with AsyncClient(endpoint) as client:
        record.failures = [LOST, NOT_READY]
        assert (await client.generate_text("my-agent", "hi")).text == "echo: hi"
        assert kinds(record) == ["GenerateText", "GetAgent", "GenerateText", "GenerateText"]
        record.failures = [LOST, NOT_READY]
        assert [piece.text async for piece in client.stream_text("my-agent", "a b")] == ["a ", "b "]
        record.failures = [NOT_READY]
        assert (await client.call_agent("my-agent", REQUEST))["text"] == "hi"


async def test_what_must_not_be_done_twice_is_not_repeated(endpoint: str, record: Record) -> None:
    async with AsyncClient(endpoint) as client:
        for call in (
            lambda: client.generate_text("once", "hi"),
            lambda: client.call_agent("my-agent", REQUEST),
            lambda: client.text_generation.GetHealth(text_generation_pb2.HealthRequest(), wait_for_ready=False),
        ):
            record.failures = [LOST]
            with pytest.raises(errors.Unavailable, match="the worker ended"):
                await call()
        record.requests.clear()
        pieces = client.stream_text("my-agent", "a cut")
        assert (await anext(pieces)).text == "a "
        with pytest.raises(errors.Unavailable, match="the worker ended"):
            _ = [piece async for piece in pieces]
    assert kinds(record) == ["StreamText"]


async def test_a_stream_that_waits_for_its_first_piece_can_be_cancelled(endpoint: str, record: Record) -> None:
    record.raises["StreamText"] = NOT_READY
    async with AsyncClient(endpoint) as client:
        call = client.text_generation.StreamText(text_generation_pb2.StreamTextRequest(prompt="x"))
        await asyncio.to_thread(record.wait_for, lambda seen: len(seen.requests) >= 2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            async for _ in call:
                pass


async def test_a_call_s_code_can_still_be_asked(endpoint: str) -> None:
    async with AsyncClient(endpoint) as client:
        call = client.agent("my-agent").text_generation.GetHealth(text_generation_pb2.HealthRequest())
        assert (await call).status == "healthy"
        assert await call.code() is grpc.StatusCode.OK


async def test_calls_at_the_same_time(endpoint: str) -> None:
    async with AsyncClient(endpoint) as client:
        answers = await asyncio.gather(*(client.generate_text(f"agent-{n}", str(n)) for n in range(20)))
    assert [answer.text for answer in answers] == [f"echo: {n}" for n in range(20)]


async def test_cancellation_is_no_error_of_ours(endpoint: str) -> None:
    async with AsyncClient(endpoint) as client:
        task = asyncio.create_task(client.generate_text("my-agent", "x"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_call_agent(endpoint: str) -> None:
    async with AsyncClient(endpoint) as client:
        assert (await client.call_agent("text-generator-01", REQUEST))["tokens_used"] == 2


async def test_a_registration_is_renewed_and_taken_up_again_when_lost(endpoint: str, record: Record) -> None:
    async with AsyncClient(endpoint) as client:
        assert (await client.register_agent(DATA)).agent_id == "text-generator-01"
        await asyncio.to_thread(record.wait_for, lambda seen: len(seen.requests) >= 3)
        record.leases.clear()
        await asyncio.to_thread(record.wait_for, lambda seen: seen.registrations >= 2)
        await client.deregister_agent("text-generator-01")
    assert not any(task.get_name().startswith("lease-") for task in asyncio.all_tasks())


async def test_a_closed_client_says_so(endpoint: str) -> None:
    client = AsyncClient(endpoint)
    await client.close()
    with pytest.raises(errors.FailedPrecondition, match="closed"):
        await client.generate_text("my-agent", "x")
