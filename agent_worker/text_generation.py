"""Serves `uapi.v1.TextGenerationService` by an author's `Agent.generate`, in whichever of its forms."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, Protocol

from agentruntime import errors
from agentruntime._proto.uapi.v1 import text_generation_pb2, text_generation_pb2_grpc
from agentruntime.agent import Agent, Piece, Token
from grpc import aio

from agent_worker import gathering

_END = object()


class Vitals(Protocol):
    """How this worker is doing; `health.Vitals` in a worker."""

    def report(self) -> text_generation_pb2.HealthResponse: ...


class TextGenerationServicer(text_generation_pb2_grpc.TextGenerationServiceServicer):
    """Adapts an agent to the service."""

    def __init__(self, agent: Agent, vitals: Vitals, gather_s: float = 0.0) -> None:
        """Pieces of a stream are gathered for up to `gather_s` before they are sent; 0 sends each by itself."""
        self._agent = agent
        self._vitals = vitals
        self._gather_s = gather_s

    async def GenerateText(
        self, request: text_generation_pb2.GenerateTextRequest, context: aio.ServicerContext[Any, Any]
    ) -> text_generation_pb2.GenerateTextResponse:
        text, tally = [], _Tally()
        async for piece in self._generate(request):
            tally.add(piece)
            text.append(piece.text)
        return text_generation_pb2.GenerateTextResponse(
            text="".join(text), confidence=tally.confidence, tokens_used=tally.tokens
        )

    async def StreamText(
        self, request: text_generation_pb2.StreamTextRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[text_generation_pb2.StreamTextResponse]:
        tally = _Tally()
        if not self._gather_s:
            async for piece in self._generate(request):
                tally.add(piece)
                yield text_generation_pb2.StreamTextResponse(
                    text=piece.text, confidence=tally.confidence, tokens_used=tally.tokens
                )
            return
        async for pieces in gathering.gathered(self._generate(request), self._gather_s):
            for piece in pieces:
                tally.add(piece)
            yield text_generation_pb2.StreamTextResponse(
                text="".join(piece.text for piece in pieces), confidence=tally.confidence, tokens_used=tally.tokens
            )

    async def GetHealth(
        self, request: text_generation_pb2.HealthRequest, context: aio.ServicerContext[Any, Any]
    ) -> text_generation_pb2.HealthResponse:
        return self._vitals.report()

    async def _generate(
        self, request: text_generation_pb2.GenerateTextRequest | text_generation_pb2.StreamTextRequest
    ) -> AsyncIterator[Token]:
        if not request.prompt:
            raise errors.InvalidArgument("prompt must not be empty")
        if not 0 <= request.temperature <= 2:
            raise errors.InvalidArgument(f"temperature is {request.temperature:g}; it must be from 0 to 2")
        if request.max_tokens < 0:
            raise errors.InvalidArgument(f"max_tokens is {request.max_tokens}; it must not be negative")
        generate = partial(
            self._agent.generate, request.prompt, temperature=request.temperature, max_tokens=request.max_tokens
        )
        if inspect.iscoroutinefunction(self._agent.generate) or inspect.isasyncgenfunction(self._agent.generate):
            result: Any = generate()
        else:
            result = await asyncio.to_thread(generate)
        if inspect.isawaitable(result):
            result = await result
        async for piece in _pieces(result):
            yield _token(piece)


async def _pieces(result: Any) -> AsyncIterator[Any]:
    """Whatever `generate` came to, piece by piece; closes a generator that the caller does not exhaust."""
    if isinstance(result, str | Token):
        yield result
    elif isinstance(result, AsyncIterator):
        try:
            async for piece in result:
                yield piece
        finally:
            if inspect.isasyncgen(result):
                await result.aclose()
    elif isinstance(result, Iterator):
        step: asyncio.Future[Any] | None = None
        try:
            while True:
                step = asyncio.ensure_future(asyncio.to_thread(next, result, _END))
                if (piece := await asyncio.shield(step)) is _END:
                    return
                yield piece
        finally:
            if step is not None:
                await asyncio.wait([step])  # its thread cannot be stopped, only awaited
            if inspect.isgenerator(result):
                await asyncio.to_thread(result.close)
    else:
        raise TypeError(f"generate() returned {type(result).__name__}, not text, a Token, or an iterator of them")


class _Tally:
    """Counts tokens and their mean probability."""

    def __init__(self) -> None:
        self.tokens = 0
        self._probabilities = 0.0

    def add(self, token: Token) -> None:
        self.tokens += 1
        self._probabilities += token.probability

    @property
    def confidence(self) -> float:
        return self._probabilities / self.tokens if self.tokens else 0.0


def _token(piece: Piece | object) -> Token:
    if isinstance(piece, Token):
        return piece
    if isinstance(piece, str):
        return Token(piece)
    raise TypeError(f"generate() yielded {type(piece).__name__}, not text or a Token")


def add_to(server: aio.Server, agent: Agent, vitals: Vitals, *, gather_s: float) -> None:
    """Lets a server serve the agent's text generation."""
    text_generation_pb2_grpc.add_TextGenerationServiceServicer_to_server(
        TextGenerationServicer(agent, vitals, gather_s), server
    )
