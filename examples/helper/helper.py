"""An agent that holds conversations: it remembers, and thinks with the embedded model if it may."""

from collections.abc import AsyncIterator

from agentruntime import Agent, ChatMessage, Context, errors


class Helper(Agent):
    async def on_message(self, message: ChatMessage, ctx: Context) -> AsyncIterator[str]:
        visits = (ctx.state or {}).get("visits", 0) + 1
        await ctx.set_state({"visits": visits})
        try:
            async for piece in ctx.model.generate(f"Answer briefly: {message.text}"):
                yield piece
        except (errors.PermissionDenied, errors.FailedPrecondition):
            # No `permissions: {models: [smollm2]}`, or no model on this machine.
            yield f"This is message {visits}, and I have no model to think with. "
            yield f"You said: {message.text}"
