"""What an agent's author writes: a subclass of `Agent`, or a generated servicer of the author's own proto."""

from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentruntime.conversation import ChatMessage, Context, Replies, Reply


@dataclass(frozen=True)
class Token:
    """A piece of generated text, and the probability (0 to 1) that the model gave to it."""

    text: str
    probability: float = 1.0


# What `generate` may return, or yield when it is a generator.
Piece = str | Token
Generation = Piece | Iterator[Piece] | AsyncIterator[Piece] | Awaitable[Piece]


class Agent:
    """An agent that generates text, holds conversations, or both.

    Define `generate`, which the platform serves as `uapi.v1.TextGenerationService`, in whichever form suits: a plain
    or async function that returns the text, or a plain or async generator that yields it in pieces. Plain functions
    run in a thread, so they may block. What it raises reaches the caller: an `agentruntime.errors.AgentError` with
    its code, anything else as INTERNAL.

        class Greeter(Agent):
            async def generate(self, prompt, *, temperature, max_tokens):
                yield "Hello, "
                yield prompt

    Define `on_message` to hold conversations, which the platform serves as `uapi.v1.ConversationService`
    (docs/conversations.md); with or without `generate`.

    A class that also derives from generated servicers serves those too. A class that only does that need not
    derive from `Agent`; `start` and `stop` are called wherever they are defined.
    """

    async def start(self) -> None:
        """Called once in each worker, before it is ready: load models and open files here, not at import."""

    async def stop(self) -> None:
        """Called once, when the worker has finished its calls and ends."""

    def generate(self, prompt: str, *, temperature: float, max_tokens: int) -> Generation:
        """Answers a prompt.

        Args:
            prompt: not empty.
            temperature: from 0 (always the likeliest token) to 2.
            max_tokens: the most tokens to generate; 0 leaves it to the agent.

        Returns:
            The text, or its pieces in order. Each piece counts as one token.
        """
        raise TypeError(f"{type(self).__name__} does not define generate()")

    def on_message(self, message: "ChatMessage", ctx: "Context") -> "Awaitable[Reply] | Replies":
        """Handles a message of a conversation; those of one conversation come one at a time.

        Define it as `async def`. What it raises reaches the caller, as with `generate`.

        Args:
            message: what was said.
            ctx: the conversation that it is in.

        Returns:
            The reply, or its pieces in order.
        """
        raise TypeError(f"{type(self).__name__} does not define on_message()")
