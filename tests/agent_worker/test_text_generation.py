import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import text_generation_pb2 as pb
from agentruntime.agent import Agent, Token

from agent_worker.text_generation import TextGenerationServicer
from agent_worker.vitals import Vitals


class Plain(Agent):
    def generate(self, prompt: str, *, temperature: float, max_tokens: int) -> str:
        return f"{prompt}!"


class Coroutine(Agent):
    async def generate(self, prompt: str, *, temperature: float, max_tokens: int) -> Token:
        return Token(f"{prompt}!", 1.0)


class Generator(Agent):
    def generate(self, prompt: str, *, temperature: float, max_tokens: int) -> Iterator[str]:
        yield prompt
        yield "!"


class AsyncGenerator(Agent):
    async def generate(self, prompt: str, *, temperature: float, max_tokens: int) -> AsyncIterator[str]:
        yield prompt
        yield "!"


def servicer(agent: Agent) -> TextGenerationServicer:
    return TextGenerationServicer(agent, Vitals())


async def stream(agent: Agent, prompt: str = "hi") -> list[pb.StreamTextResponse]:
    request: Any = pb.StreamTextRequest(prompt=prompt)
    context: Any = None
    return [response async for response in servicer(agent).StreamText(request, context)]


@pytest.mark.parametrize(
    ("agent", "tokens"), [(Plain(), 1), (Coroutine(), 1), (Generator(), 2), (AsyncGenerator(), 2)]
)
async def test_every_form_of_generate_answers_both_ways(agent: Agent, tokens: int) -> None:
    context: Any = None
    whole = await servicer(agent).GenerateText(pb.GenerateTextRequest(prompt="hi"), context)
    assert (whole.text, whole.tokens_used, whole.confidence) == ("hi!", tokens, 1.0)
    pieces = await stream(agent)
    assert "".join(piece.text for piece in pieces) == "hi!"
    assert [piece.tokens_used for piece in pieces] == list(range(1, tokens + 1))


async def test_confidence_is_the_mean_probability() -> None:
    class Unsure(Agent):
        async def generate(self, prompt: str, *, temperature: float, max_tokens: int) -> AsyncIterator[Token]:
            yield Token("a", 0.5)
            yield Token("b", 0.25)

    assert [piece.confidence for piece in await stream(Unsure())] == [0.5, 0.375]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x", "temperature": 2.5}, "temperature"),
        ({"prompt": "x", "temperature": float("nan")}, "temperature"),
        ({"prompt": "x", "max_tokens": -1}, "max_tokens"),
    ],
)
async def test_numbers_out_of_range_are_refused(fields: dict[str, Any], said: str) -> None:
    context: Any = None
    with pytest.raises(errors.InvalidArgument, match=said):
        await servicer(Plain()).GenerateText(pb.GenerateTextRequest(**fields), context)


async def test_a_wrong_return_is_named() -> None:
    class Wrong(Agent):
        def generate(self, prompt: str, *, temperature: float, max_tokens: int) -> Any:
            return 42

    with pytest.raises(TypeError, match="generate\\(\\) returned int"):
        await stream(Wrong())


async def test_a_cancelled_stream_closes_a_plain_generator_after_its_step() -> None:
    closed, release = threading.Event(), threading.Event()

    class Slow(Agent):
        def generate(self, prompt: str, *, temperature: float, max_tokens: int) -> Iterator[str]:
            try:
                yield "first"
                release.wait(10)
                yield "second"
            finally:
                closed.set()

    seen = asyncio.Event()

    async def consume() -> None:
        request: Any = pb.StreamTextRequest(prompt="x")
        context: Any = None
        async for _ in servicer(Slow()).StreamText(request, context):
            seen.set()

    task = asyncio.create_task(consume())
    await seen.wait()
    task.cancel()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(closed.wait, 10)
