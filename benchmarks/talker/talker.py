"""An agent that gives back what it is told: at once, or word by word where the message says "stream" or "slowly"."""

import asyncio

from agentruntime import Agent
from agentruntime.conversation import ChatMessage, Context

# What a message begins with, and how long each word then takes.
_PAUSES_S = {"stream": 0.0, "slowly": 0.02}


class Talker(Agent):
    async def on_message(self, message: ChatMessage, ctx: Context) -> str | None:
        first, _, words = message.text.partition(" ")
        if first not in _PAUSES_S:
            return message.text
        for word in words.split():
            await ctx.reply(f"{word} ")
            await asyncio.sleep(_PAUSES_S[first])
        return None
