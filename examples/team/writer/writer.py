"""An agent that has another one look over what it writes."""

from collections.abc import AsyncIterator

from agentruntime import Agent, context
from agentruntime._proto.uapi.v1.text_generation_pb2 import GenerateTextRequest


class Writer(Agent):
    async def generate(self, prompt: str, *, temperature: float, max_tokens: int) -> AsyncIterator[str]:
        draft = f"{prompt}, said the writer"
        # The call belongs to the one that is being answered: it has its trace, and ends at its deadline.
        judged = await context.agent("critic").text_generation.GenerateText(GenerateTextRequest(prompt=draft))
        yield f"{draft}. {judged.text}"
