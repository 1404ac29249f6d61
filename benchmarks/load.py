"""Calls an agent at a fixed number in flight, and checks every answer."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agentruntime._proto.uapi.v1 import text_generation_pb2, text_generation_pb2_grpc
from grpc import aio

_TIMEOUT_S = 60
_UNARY_PROMPT = "How many calls are in flight?"


@dataclass(frozen=True)
class Target:
    """Where to call, and as which agent."""

    address: str
    agent: str
    # Beside the agent's name.
    metadata: tuple[tuple[str, str], ...] = ()


class Load:
    """A client with one open channel, as a service that calls an agent has."""

    def __init__(self, target: Target) -> None:
        # Not one that another channel to the same address has open.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = aio.insecure_channel(target.address, options=options)
        self._stub = text_generation_pb2_grpc.TextGenerationServiceStub(self._channel)
        self._metadata = (("x-uapi-agent", target.agent), *target.metadata)

    async def close(self) -> None:
        await self._channel.close()

    async def unary(self, calls: int, in_flight: int) -> float:
        """Makes unary calls; returns wall seconds."""
        request = text_generation_pb2.GenerateTextRequest(prompt=_UNARY_PROMPT)

        async def call() -> None:
            response = await self._stub.GenerateText(request, metadata=self._metadata, timeout=_TIMEOUT_S)
            if response.text != _UNARY_PROMPT:
                raise SystemExit(f"a wrong answer: {response.text!r}")

        return await _spread(call, calls, in_flight)

    async def streams(self, streams: int, messages: int, in_flight: int, *, gathered: bool = False) -> float:
        """Reads streams of so many messages each, of fewer if the agent gathers them; returns wall seconds."""
        words = " ".join(f"word{number}" for number in range(messages))
        request = text_generation_pb2.StreamTextRequest(prompt=words)

        async def call() -> None:
            pieces = self._stub.StreamText(request, metadata=self._metadata, timeout=_TIMEOUT_S)
            texts = [piece.text async for piece in pieces]
            if (len(texts) < messages) is not gathered or "".join(texts) != words:
                raise SystemExit(f"a wrong stream of {len(texts)} messages")

        return await _spread(call, streams, in_flight)


async def _spread(call: Callable[[], Awaitable[None]], count: int, in_flight: int) -> float:
    left = count

    async def lane() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    started = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(in_flight)))
    return time.perf_counter() - started
