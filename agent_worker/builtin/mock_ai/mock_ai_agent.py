"""Answers like a model would, without one: canned sentences at a model's pace, for demos and tests of clients."""

import asyncio
import re
from collections.abc import AsyncIterator

from agentruntime.agent import Agent, Token

_SECONDS_PER_TOKEN = 0.005
_ANSWERS = (
    (r"\b(hello|hi|hey)\b", "Hello! How can I help you today?"),
    (r"\b(bye|goodbye)\b", "Goodbye! It was nice to talk to you."),
    (r"\?\s*$", "That is a good question. I am a mock, so I do not know, but I would look at the facts first."),
)
_OTHERWISE = "I see. Tell me more about that."


class MockAI(Agent):
    async def generate(self, prompt: str, *, temperature: float, max_tokens: int) -> AsyncIterator[Token]:
        answer = next((text for pattern, text in _ANSWERS if re.search(pattern, prompt, re.IGNORECASE)), _OTHERWISE)
        for piece in re.findall(r"\S+\s*", answer)[: max_tokens or None]:
            await asyncio.sleep(_SECONDS_PER_TOKEN)
            yield Token(piece, 0.9)
