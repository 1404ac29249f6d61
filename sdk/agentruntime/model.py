"""Language models, as an agent has them at hand: `context.model`, and `ctx.model` in a conversation.

    async for piece in ctx.model.generate("Why is the sky blue?"):
        yield piece
    answer = await ctx.model.generate("Answer in a word: is it?", max_tokens=4)

The model runs on the platform, in a process of its own; an agent only asks, and only for those that `permissions:
models:` of its agent.yaml names.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import aclosing
from typing import TYPE_CHECKING

from agentruntime._proto.uapi.v1 import model_service_pb2 as proto

if TYPE_CHECKING:
    from agentruntime._proto.uapi.v1 import model_service_pb2_grpc

    Connect = Callable[[], model_service_pb2_grpc.ModelServiceAsyncStub]

DEFAULT_MODEL = "smollm2"
# Of a whole generation where the call that is being handled has no deadline: 2000 tokens on one slow core.
_LONGEST_S = 600.0


class Model:
    """All models. `connect` gives the service; it is called when something is generated."""

    def __init__(self, connect: "Connect") -> None:
        self._connect = connect

    def generate(
        self, prompt: str, *, model: str = DEFAULT_MODEL, max_tokens: int = 256, temperature: float = 0.0
    ) -> "Generation":
        """Text that a model generates: iterate over it for its pieces as they come, or await it for all of it.

        Nothing is asked before that. Leaving the iteration, and being cancelled, ends the generation. It ends with
        the call that is being handled, or after 10 minutes.

        Args:
            prompt: not empty; the model answers it, as the user's only message.
            model: its name.
            max_tokens: the most tokens to generate; 0 leaves it to the model.
            temperature: from 0, which takes the likeliest token each time, to 2.

        Raises (when it is iterated over or awaited):
            PermissionDenied: agent.yaml does not permit the model; says what it would have to say.
            NotFound: there is no such model.
            InvalidArgument: an empty prompt, one that is longer than the model reads, a number out of its range.
            FailedPrecondition: the model is not installed, or was stopped; or this process is no worker.
            ResourceExhausted: the model does not fit beside what runs.
        """
        request = proto.GenerateRequest(model=model, prompt=prompt, max_tokens=max_tokens, temperature=temperature)
        return Generation(self._connect, request)


class Generation:
    """A text that is generated. Each iteration over it, and each `await`, generates it anew."""

    def __init__(self, connect: "Connect", request: proto.GenerateRequest) -> None:
        self._connect = connect
        self._request = request

    def __aiter__(self) -> AsyncIterator[str]:
        return self._pieces()

    def __await__(self) -> Generator[object, None, str]:
        return self._whole().__await__()

    async def _pieces(self) -> AsyncGenerator[str, None]:
        call = self._connect().Generate(self._request, timeout=_LONGEST_S)
        try:
            async for answer in call:
                if answer.text:
                    yield answer.text
        finally:
            call.cancel()

    async def _whole(self) -> str:
        async with aclosing(self._pieces()) as pieces:
            return "".join([piece async for piece in pieces])
