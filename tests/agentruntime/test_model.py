"""What an agent has of a model: pieces, the whole, and an end to the generation when it is left."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from agentruntime import calls, context, errors
from agentruntime._proto.uapi.v1 import model_service_pb2 as proto
from agentruntime._proto.uapi.v1 import model_service_pb2_grpc
from agentruntime.client import AsyncClient
from agentruntime.interceptors import ServerInterceptor
from agentruntime.model import Model
from grpc import aio

from agent_worker.admission import of_its_handler
from tests.waiting import eventually


class Service(model_service_pb2_grpc.ModelServiceServicer):
    """Says the words of the prompt, and goes on for ever after "wait"; `losses` times it breaks at `lost_at`."""

    server: aio.Server

    def __init__(self) -> None:
        self.requests: list[proto.GenerateRequest] = []
        self.left_s: float | None = None
        self.lost_at, self.losses = "", 0
        self.begins, self.ended = asyncio.Event(), asyncio.Event()
        self.begins.set()

    async def Generate(self, request: proto.GenerateRequest, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        self.left_s = context.time_remaining()
        if not request.prompt:
            raise errors.InvalidArgument("prompt must not be empty")
        await self.begins.wait()
        try:
            for number, word in enumerate(request.prompt.split(), 1):
                if word == self.lost_at and self.losses:
                    self.losses -= 1
                    # As Envoy says it of a stream that breaks.
                    raise errors.Unavailable("the worker ended during the call", reason="WORKER_LOST")
                # A character of several bytes may come as one piece of text for several tokens.
                yield proto.GenerateResponse(text=f"{word} ", tokens=number)
                yield proto.GenerateResponse(text="", tokens=number)
                while word == "wait":
                    await asyncio.sleep(3600)
        finally:
            self.ended.set()


async def _started(service: Service, address: str) -> None:
    server = aio.server(interceptors=[ServerInterceptor()])
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
    server.add_insecure_port(address)
    await server.start()
    service.server = server


@pytest_asyncio.fixture
async def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    made = Service()
    address = f"unix:{tmp_path}/s"
    await _started(made, address)
    client = AsyncClient(address, token="")
    monkeypatch.setattr(calls, "address", address)
    monkeypatch.setitem(context._clients, asyncio.get_running_loop(), client)
    yield made
    await client.close()
    await made.server.stop(None)


async def test_pieces_as_they_come_and_the_whole(service: Service) -> None:
    generation = context.model.generate("a b", model="m", max_tokens=7, temperature=0.5)
    assert service.requests == []
    assert [piece async for piece in generation] == ["a ", "b "]
    assert await generation == "a b "
    assert service.requests == 2 * [proto.GenerateRequest(model="m", prompt="a b", max_tokens=7, temperature=0.5)]
    await context.model.generate("a")
    assert service.requests[-1] == proto.GenerateRequest(model="smollm2", prompt="a", max_tokens=256)
    assert service.left_s is not None
    # gRPC rounds it up on the wire.
    assert 500 < service.left_s < 602


async def test_it_ends_with_the_call_that_is_handled(service: Service) -> None:
    async def handler() -> None:
        calls.enter((), 20.0)
        await context.model.generate("a")

    await asyncio.create_task(handler())
    assert service.left_s is not None
    assert service.left_s < 21


async def test_whoever_leaves_ends_the_generation(service: Service) -> None:
    async for piece in context.model.generate("wait"):
        assert piece == "wait "
        break
    async with asyncio.timeout(10):
        await service.ended.wait()


@pytest.mark.parametrize("whole", [False, True])
async def test_being_cancelled_ends_the_generation(service: Service, whole: bool) -> None:
    came = asyncio.Event()

    async def pieces() -> None:
        async for _ in context.model.generate("wait"):
            came.set()

    async def all_of_it() -> None:
        await context.model.generate("wait")

    handling = asyncio.create_task(all_of_it() if whole else pieces())
    async with asyncio.timeout(10):
        while not service.requests:
            await asyncio.sleep(0.01)
        if not whole:
            await came.wait()
        handling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handling
        await service.ended.wait()


@pytest.mark.parametrize("prompt", ["a wait", "wait"])
async def test_a_cancelled_message_ends_it_at_once(service: Service, prompt: str) -> None:
    cancelled = asyncio.Event()
    came = []

    async def handle() -> None:
        async for piece in context.model.until(cancelled).generate(prompt):
            came.append(piece)
            if piece == "wait ":
                cancelled.set()

    with pytest.raises(errors.Cancelled, match="the message was cancelled"):
        await handle()
    assert came == [f"{word} " for word in prompt.split()]
    async with asyncio.timeout(10):
        await service.ended.wait()
    with pytest.raises(errors.Cancelled):
        await context.model.until(cancelled).generate("a")
    assert len(service.requests) == 1


async def test_a_message_that_is_cancelled_before_the_first_piece(service: Service) -> None:
    cancelled = asyncio.Event()
    service.begins.clear()

    async def ask() -> str:
        return await context.model.until(cancelled).generate("a")

    asking = asyncio.create_task(ask())
    async with asyncio.timeout(10):
        while not service.requests:
            await asyncio.sleep(0.01)
        cancelled.set()
        with pytest.raises(errors.Cancelled):
            await asking


async def test_what_is_lost_before_its_first_piece_is_generated_anew(service: Service) -> None:
    service.lost_at, service.losses = "a", 1
    assert [piece async for piece in context.model.generate("a b")] == ["a ", "b "]
    assert len(service.requests) == 2


async def test_what_is_lost_in_its_middle_says_so(service: Service) -> None:
    service.lost_at, service.losses = "b", 1
    pieces = aiter(context.model.generate("a b"))
    assert await anext(pieces) == "a "
    with pytest.raises(errors.GenerationBroken, match="generate it anew") as caught:
        await anext(pieces)
    assert caught.value.metadata == {"cause": "WORKER_LOST"}
    # Neither an agent's caller nor a conversation takes it for the end of the agent's own worker.
    assert of_its_handler(caught.value) is caught.value
    assert len(service.requests) == 1


async def test_what_is_awaited_is_generated_anew_once(service: Service) -> None:
    service.lost_at, service.losses = "b", 1
    assert await context.model.generate("a b") == "a b "
    service.losses = 9
    with pytest.raises(errors.GenerationBroken):
        await context.model.generate("a b")
    assert service.losses == 7


async def test_a_gateway_that_is_restarted_before_the_first_piece(service: Service) -> None:
    service.begins.clear()
    asking = asyncio.ensure_future(anext(aiter(context.model.generate("a b"))))
    await eventually(lambda: service.requests)
    await service.server.stop(None)
    service.begins.set()
    await _started(service, calls.address)
    assert await asking == "a "
    assert len(service.requests) == 2


async def test_errors_are_those_of_the_platform(service: Service) -> None:
    with pytest.raises(errors.InvalidArgument, match="must not be empty"):
        await context.model.generate("")


async def test_only_a_worker_has_models() -> None:
    with pytest.raises(errors.FailedPrecondition, match="by a worker of the platform"):
        await context.model.generate("a")
    assert isinstance(context.model, Model)
