"""An agent that gives back what it is told: at once, or word by word where the message says "stream" or "slowly"."""

import asyncio
from collections.abc import AsyncIterator

from agentruntime import Agent
from agentruntime.conversation import ChatMessage, Context

# What a message begins with, and how long each word then takes.
_PAUSES_S = {"stream": 0.0, "slowly": 0.02}


class Talker(Agent):
    async def on_message(self, message: ChatMessage, ctx: Context) -> AsyncIterator[str]:
        first, _, words = message.text.partition(" ")
        if first not in _PAUSES_S:
            yield message.text
            return
        for word in words.split():
            yield f"{word} "
            await asyncio.sleep(_PAUSES_S[first])
