"""What stands before an agent's handlers, in a server of the test's own."""

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from agentruntime import AsyncClient, Client, errors, status, trace
from agentruntime.interceptors import ServerInterceptor
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from agent_worker.admission import Admission, Slots
from agent_worker.vitals import Vitals
from tests.waiting import eventually

CALL, STREAM = "/t.T/Call", "/t.T/Stream"


class Handlers(grpc.GenericRpcHandler):
    """Bytes in, bytes out, by the behaviours that the test gives."""

    def __init__(self, call: Any, stream: Any) -> None:
        self._found: dict[str, Any] = {
            CALL: grpc.unary_unary_rpc_method_handler(call),
            STREAM: grpc.unary_stream_rpc_method_handler(stream),
        }

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return self._found.get(details.method)


@asynccontextmanager
async def served(call: Any = None, stream: Any = None, **options: Any) -> AsyncIterator[tuple[aio.Channel, Any]]:
    async with serving(call, stream, **options) as (address, admission), aio.insecure_channel(address) as channel:
        yield channel, admission


@asynccontextmanager
async def serving(
    call: Any = None,
    stream: Any = None,
    *,
    concurrency: int = 4,
    queue: int = 100,
    timeout_s: float = 60.0,
    held_bytes: int = 2**20,
) -> AsyncIterator[tuple[str, Any]]:
    vitals = Vitals()
    executor = ThreadPoolExecutor(concurrency)
    admission = Admission(
        vitals,
        executor,
        concurrency=concurrency,
        queue=queue,
        default_timeout_s=timeout_s,
        held_bytes=held_bytes,
    )
    server = aio.server(interceptors=[ServerInterceptor(), admission])
    server.add_generic_rpc_handlers((Handlers(call, stream),))
    probe = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(probe, server)
    await probe.set("", health_pb2.HealthCheckResponse.SERVING)
    with tempfile.TemporaryDirectory(prefix="uapi-adm-") as directory:
        address = f"unix:{directory}/s"
        server.add_insecure_port(address)
        await server.start()
        try:
            yield address, admission
        finally:
            await server.stop(0)
            await asyncio.to_thread(executor.shutdown)


async def async_call(request: bytes, context: Any) -> bytes:
    return request


async def async_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield request
    yield request


def plain_call(request: bytes, context: Any) -> bytes:
    return request


def plain_stream(request: bytes, context: Any) -> Iterator[bytes]:
    yield request
    yield request


async def failing_call(request: bytes, context: Any) -> bytes:
    raise ValueError("mine")


@pytest.mark.parametrize(("call", "stream"), [(async_call, async_stream), (plain_call, plain_stream)])
async def test_calls_of_every_form_are_answered_and_counted(call: Any, stream: Any) -> None:
    async with served(call, stream) as (channel, admission):
        unary: Any = channel.unary_unary(CALL)
        streaming: Any = channel.unary_stream(STREAM)
        assert await unary(b"x", timeout=5) == b"x"
        assert [piece async for piece in streaming(b"y", timeout=5)] == [b"y", b"y"]
        assert admission._vitals.requests_processed == 2


async def test_a_failed_call_was_answered_too() -> None:
    async with served(failing_call) as (channel, admission):
        unary: Any = channel.unary_unary(CALL)
        with pytest.raises(aio.AioRpcError) as caught:
            await unary(b"x", timeout=5)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "mine" not in str(caught.value.details())
        assert admission._vitals.requests_processed == 1


async def test_the_agents_deadline_is_for_unary_calls_without_one() -> None:
    async def slow_call(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(0.3)
        return request

    async def slow_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        await asyncio.sleep(0.3)
        yield request

    async with served(slow_call, slow_stream, timeout_s=0.05) as (channel, _):
        unary: Any = channel.unary_unary(CALL)
        streaming: Any = channel.unary_stream(STREAM)
        with pytest.raises(aio.AioRpcError) as caught:
            await unary(b"x")
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await unary(b"x", timeout=5) == b"x"
        assert [piece async for piece in streaming(b"x")] == [b"x"]


async def test_an_agents_own_timeout_is_its_own_error() -> None:
    async def times_out(request: bytes, context: Any) -> bytes:
        raise TimeoutError

    async with served(times_out) as (channel, _):
        unary: Any = channel.unary_unary(CALL)
        for deadline_s in (5, None):
            with pytest.raises(aio.AioRpcError) as caught:
                await unary(b"x", timeout=deadline_s)
            assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_health_answers_while_all_slots_are_taken_and_is_not_counted() -> None:
    release = asyncio.Event()

    async def held(request: bytes, context: Any) -> bytes:
        await release.wait()
        return request

    async with served(held, concurrency=1) as (channel, admission):
        unary: Any = channel.unary_unary(CALL)
        calls = [asyncio.ensure_future(unary(b"x", timeout=10)) for _ in range(3)]
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert admission._vitals.requests_processed == 0
        release.set()
        assert await asyncio.gather(*calls) == [b"x"] * 3
        assert admission._vitals.requests_processed == 3


class Held:
    """Handlers of every form that wait until they are let go, and what they were begun with."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun: list[bytes] = []

    async def async_call(self, request: bytes, context: Any) -> bytes:
        self.begun.append(request)
        while not self.go.is_set():
            await asyncio.sleep(0.005)
        return request

    def plain_call(self, request: bytes, context: Any) -> bytes:
        self.begun.append(request)
        self.go.wait(20)
        return request

    async def async_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        self.begun.append(request)
        yield b"1"
        while not self.go.is_set():
            await asyncio.sleep(0.005)
        yield b"2"

    def plain_stream(self, request: bytes, context: Any) -> Iterator[bytes]:
        self.begun.append(request)
        yield b"1"
        self.go.wait(20)
        yield b"2"


@pytest.fixture
def held() -> Iterator[Held]:
    handlers = Held()
    yield handlers
    handlers.go.set()


async def failure(call: Any) -> errors.AgentError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return status.decode(caught.value)


@pytest.mark.parametrize("form", ["async_call", "plain_call"])
async def test_a_full_queue_refuses_at_once_and_goes_on(held: Held, form: str) -> None:
    async with served(getattr(held, form), concurrency=2, queue=3) as (channel, _):
        unary: Any = channel.unary_unary(CALL)
        calls = [asyncio.ensure_future(unary(b"x", timeout=20)) for _ in range(9)]
        await eventually(lambda: sum(call.done() for call in calls) == 4)
        for call in [call for call in calls if call.done()]:
            error = await failure(call)
            assert (type(error), error.reason) == (errors.QueueFull, "QUEUE_FULL")
        held.go.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert results.count(b"x") == len(held.begun) == 5
        assert await unary(b"after", timeout=5) == b"after"


@pytest.mark.parametrize("form", ["async_call", "plain_call"])
async def test_a_call_whose_deadline_passes_while_it_waits_is_never_begun(held: Held, form: str) -> None:
    async with served(getattr(held, form), concurrency=1) as (channel, _):
        unary: Any = channel.unary_unary(CALL)
        first = asyncio.ensure_future(unary(b"first", timeout=20))
        await eventually(lambda: held.begun)
        error = await failure(unary(b"late", timeout=0.1))
        assert type(error) is errors.DeadlineExceeded
        held.go.set()
        assert await first == b"first"
        assert await unary(b"next", timeout=5) == b"next"
        assert held.begun == [b"first", b"next"]


async def test_one_whose_deadline_passed_unnoticed_is_not_begun_either() -> None:
    """The loop was too busy to hear of it before the slot was free."""

    class Context:
        def time_remaining(self) -> float:
            return 0.0

    slots = Slots(1, 1)
    context: Any = Context()
    with pytest.raises(errors.DeadlineExceeded):
        await slots.take(context)
    with pytest.raises(errors.DeadlineExceeded):  # the slot is free again, or this would wait
        await asyncio.wait_for(slots.take(context), 5)


@pytest.mark.parametrize("form", ["async_stream", "plain_stream"])
@pytest.mark.parametrize("waits", [False, True])
async def test_what_is_left_after_the_grace_period_ends_with_its_reason(held: Held, form: str, waits: bool) -> None:
    async with served(held.async_call, getattr(held, form), concurrency=1) as (channel, admission):
        streaming: Any = channel.unary_stream(STREAM)
        stream = streaming(b"s", timeout=20)
        assert await stream.read() == b"1"
        unary: Any = channel.unary_unary(CALL)
        behind = asyncio.ensure_future(unary(b"behind", timeout=20)) if waits else None
        await eventually(lambda: len(admission.slots.waiting) == waits)
        draining = asyncio.create_task(admission.drain(0.1, asyncio.Event()))
        await eventually(lambda: admission._drains)
        refused = await failure(unary(b"new", timeout=5))
        assert (type(refused), refused.begun) == (errors.WorkerDraining, False)
        error = await failure(stream.read())
        assert (type(error), error.reason) == (errors.WorkerDrained, "WORKER_DRAINED")
        if behind is not None:
            assert type(await failure(behind)) is errors.WorkerDraining
        held.go.set()
        await asyncio.wait_for(draining, 5)
        assert b"behind" not in held.begun


async def test_a_drain_ends_with_the_last_call(held: Held) -> None:
    async with served(held.async_call, held.plain_stream) as (channel, admission):
        streaming: Any = channel.unary_stream(STREAM)
        stream = streaming(b"s", timeout=20)
        assert await stream.read() == b"1"
        draining = asyncio.create_task(admission.drain(20.0, asyncio.Event()))
        await eventually(lambda: admission._drains)
        held.go.set()
        assert await stream.read() == b"2"
        await asyncio.wait_for(draining, 5)
        assert await stream.code() is grpc.StatusCode.OK


async def test_a_refusal_says_to_proxies_that_the_call_was_not_begun(held: Held) -> None:
    async with served(held.async_call) as (channel, admission):
        await admission.drain(0.0, asyncio.Event())
        unary: Any = channel.unary_unary(CALL)
        call = unary(b"x", timeout=5)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert ("x-uapi-not-begun", "1") in list(await call.trailing_metadata())


def call_stub(channel: Any) -> Any:
    return channel.unary_unary(CALL)


def stream_stub(channel: Any) -> Any:
    return channel.unary_stream(STREAM)


class Nested:
    """Agent A: handlers of every form that call agent B by the SDK, and how often they were begun."""

    def __init__(self, b: str) -> None:
        self._b = b
        self.begun = 0

    async def async_call(self, request: bytes, context: Any) -> bytes:
        self.begun += 1
        async with AsyncClient(self._b) as client:
            answer: bytes = await client.stub(call_stub)(request, wait_for_ready=False)
            return answer

    def plain_call(self, request: bytes, context: Any) -> bytes:
        self.begun += 1
        with Client(self._b) as client:
            answer: bytes = client.stub(call_stub)(request, wait_for_ready=False)
            return answer

    async def async_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield await self.async_call(request, context)

    def plain_stream(self, request: bytes, context: Any) -> Iterator[bytes]:
        yield self.plain_call(request, context)


@pytest.mark.parametrize("form", ["async", "plain"])
async def test_the_refusal_of_a_handlers_own_call_does_not_make_its_call_repeatable(form: str) -> None:
    async with serving(async_call) as (b, draining):
        await draining.drain(0.0, asyncio.Event())
        agent = Nested(b)
        handlers = getattr(agent, f"{form}_call"), getattr(agent, f"{form}_stream")
        async with serving(*handlers) as (a, _), AsyncClient(a) as client, aio.insecure_channel(a) as plain:
            with pytest.raises(errors.Unavailable, match="has not begun") as caught:
                await client.stub(call_stub)(b"x")
            assert (type(caught.value), caught.value.reason) == (errors.Unavailable, "UNAVAILABLE")
            assert caught.value.metadata == {"cause": "WORKER_DRAINING"}
            with pytest.raises(errors.Unavailable):
                await anext(aiter(client.stub(stream_stub)(b"x")))
            unary: Any = plain.unary_unary(CALL)
            trailers = await unary(b"x", timeout=5).trailing_metadata()
            assert status.NOT_BEGUN_KEY not in dict(trailers or ())
            assert agent.begun == 3


@pytest.mark.parametrize("form", ["async", "plain"])
@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (errors.AgentNotReady("b"), "UNAVAILABLE"),
        (errors.CircuitOpen("b"), "UNAVAILABLE"),
        (errors.Unavailable("b", reason="WORKER_LOST"), "UNAVAILABLE"),
        (errors.Unavailable("b", reason="POOL_UNAVAILABLE"), "UNAVAILABLE"),
        (errors.Unavailable("b", reason="MODEL_AWAY"), "MODEL_AWAY"),
        (errors.AgentNotFound("b"), "AGENT_NOT_FOUND"),
    ],
)
async def test_only_reasons_that_are_true_of_any_call_pass(raised: errors.AgentError, reason: str, form: str) -> None:
    async def async_fails(request: bytes, context: Any) -> bytes:
        raise raised

    def plain_fails(request: bytes, context: Any) -> bytes:
        raise raised

    async with served(async_fails if form == "async" else plain_fails) as (channel, _):
        unary: Any = channel.unary_unary(CALL)
        error = await failure(unary(b"x", timeout=5))
        assert (type(error), error.reason) == (
            errors.Unavailable if reason == "UNAVAILABLE" else type(raised),
            reason,
        )


def plain_failing(request: bytes, context: Any) -> Any:
    if request == b"ours":
        raise errors.AgentNotFound("a")
    if request == b"abort":
        context.abort(grpc.StatusCode.DATA_LOSS, "mine")
    if request == b"bug":
        raise ValueError("secret")
    return (trace.current.get() or trace.TraceContext.new()).trace_id.encode()


def plain_failing_stream(request: bytes, context: Any) -> Iterator[bytes]:
    yield b"first"
    yield plain_failing(request, context)


@pytest.mark.parametrize("method", [CALL, STREAM])
async def test_errors_and_traces_of_plain_handlers_are_as_of_others(method: str) -> None:
    current = trace.TraceContext.new()

    async with served(plain_failing, plain_failing_stream) as (channel, _):

        async def outcome(request: bytes) -> Any:
            made: Any = (channel.unary_unary if method == CALL else channel.unary_stream)(method)
            call = made(request, metadata=((trace.HEADER, current.header()),), timeout=5)
            try:
                return await call if method == CALL else [piece async for piece in call][-1]
            except aio.AioRpcError as error:
                return status.decode(error)

        for _ in range(5):  # the status of an abort in a thread used to be lost now and then
            assert type(await outcome(b"ours")) is errors.AgentNotFound
            bug = await outcome(b"bug")
            assert (type(bug), "secret" in bug.message) == (errors.Internal, False)
            assert (await outcome(b"abort")).message == "mine"
            assert await outcome(b"fine") == current.trace_id.encode()
