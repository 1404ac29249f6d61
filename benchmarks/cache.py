"""cache: an answer that the gateway gives again, beside the embedded model's own."""

import statistics
import time

from agentruntime._proto.uapi.v1 import agent_pool_pb2, text_generation_pb2, text_generation_pb2_grpc
from grpc import aio

from benchmarks.platform import platform
from benchmarks.table import Table

_AGENT = "text-generator"
_PROMPTS = 12
_AGAIN = 5
_MAX_TOKENS = 20
_CACHE_BYTES = 100_000_000
_TIMEOUT_S = 120


async def measure() -> Table:
    ratios: list[float] = []
    made: list[float] = []
    given_again: list[float] = []
    async with platform() as running, running.pool() as pool, aio.insecure_channel(running.address) as channel:
        settings = agent_pool_pb2.AgentSettings(cache=agent_pool_pb2.Cache(max_bytes=_CACHE_BYTES))
        request = agent_pool_pb2.RunAgentRequest(image=f"{_AGENT}:latest", settings=settings)
        await pool.RunAgent(request, timeout=_TIMEOUT_S)
        stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
        await _call(stub, "warm up", "miss")
        for number in range(_PROMPTS):
            prompt = f"What is {number} plus {number}?"
            text, model_ms = await _call(stub, prompt, "miss")
            cached_ms = []
            for _ in range(_AGAIN):
                again, elapsed_ms = await _call(stub, prompt, "hit")
                if again != text:
                    raise SystemExit(f"the cache answered {again!r} instead of {text!r}")
                cached_ms.append(elapsed_ms)
            made.append(model_ms)
            given_again.append(statistics.median(cached_ms))
            ratios.append(given_again[-1] / model_ms)
    table = Table(
        "cache",
        f"Wall time of GenerateText of the embedded model, {_MAX_TOKENS} tokens, and of the same call again, "
        f"{_AGAIN} times, through the gateway; {_PROMPTS} prompts.",
    )
    table.add("cached / the model's, median of prompts", statistics.median(ratios), "×", 1 / 20)
    table.add("the model's answer, p50", statistics.median(made), "ms")
    table.add("cached answer, p50", statistics.median(given_again), "ms")
    return table


async def _call(
    stub: "text_generation_pb2_grpc.TextGenerationServiceAsyncStub", prompt: str, expected: str
) -> tuple[str, float]:
    """The text and the milliseconds of a call that must be a hit or a miss."""
    request = text_generation_pb2.GenerateTextRequest(prompt=prompt, max_tokens=_MAX_TOKENS)
    started = time.perf_counter()
    call = stub.GenerateText(request, metadata=(("x-uapi-agent", _AGENT),), timeout=_TIMEOUT_S)
    response = await call
    elapsed = time.perf_counter() - started
    trailers = dict(await call.trailing_metadata())
    if (found := str(trailers.get("x-uapi-cache"))) != expected:
        raise SystemExit(f"the trailer x-uapi-cache says {found}, not {expected}")
    return response.text, elapsed * 1000
