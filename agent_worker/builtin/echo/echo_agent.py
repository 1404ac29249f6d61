"""Answers with the prompt, word by word: the smallest agent there is."""

from collections.abc import AsyncIterator

from agentruntime.agent import Agent


class Echo(Agent):
    async def generate(self, prompt: str, *, temperature: float, max_tokens: int) -> AsyncIterator[str]:
        words = prompt.split(" ")
        for number, word in enumerate(words[: max_tokens or None]):
            yield word if number == 0 else f" {word}"
