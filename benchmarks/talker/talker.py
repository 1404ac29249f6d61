"""An agent that gives back what it is told: at once, or word by word where the message says "stream" or "slowly"."""

import asyncio
import uuid
from functools import cache

from agentruntime import Agent
from agentruntime.conversation import ChatMessage, Context, Part

# What a message begins with, and how long each word then takes.
_PAUSES_S = {"stream": 0.0, "slowly": 0.02}


@cache
def _process() -> str:
    """This process, and no other: one that replaces it has the same worker's name, and may have its pid.

    Made by the first message, for workers are forked from a process that gets none.
    """
    return uuid.uuid4().hex


class Talker(Agent):
    async def on_message(self, message: ChatMessage, ctx: Context) -> str | None:
        first, _, words = message.text.partition(" ")
        if first not in _PAUSES_S:
            return message.text
        for word in words.split():
            await ctx.reply(Part(text=f"{word} ", name=_process()))
            await asyncio.sleep(_PAUSES_S[first])
        return None
