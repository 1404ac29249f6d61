"""An agent that other agents call. It may use nothing, and says so to whoever asks."""

from agentruntime import Agent, context, errors


class Critic(Agent):
    async def generate(self, prompt: str, *, temperature: float, max_tokens: int) -> str:
        if prompt != "what may you use?":
            return f"The critic counts {len(prompt.split())} words."
        try:
            await context.check("agents", "writer")
        except errors.PermissionDenied as error:
            return error.message
        return "the writer"
