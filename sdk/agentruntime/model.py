"""Language models, as an agent has them at hand: `context.model`, and `ctx.model` in a conversation.

    async for piece in ctx.model.generate("Why is the sky blue?"):
        yield piece
    answer = await ctx.model.generate("Answer in a word: is it?", max_tokens=4)

The model runs on the platform, in a process of its own; an agent only asks, and only for those that `permissions:
models:` of its agent.yaml names.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import aclosing
from typing import TYPE_CHECKING

from agentruntime import errors
from agentruntime._proto.uapi.v1 import model_service_pb2 as proto

if TYPE_CHECKING:
    from agentruntime._proto.uapi.v1 import model_service_pb2_grpc

    Connect = Callable[[], model_service_pb2_grpc.ModelServiceAsyncStub]

DEFAULT_MODEL = "smollm2"
# Of a whole generation where the call that is being handled has no deadline: 2000 tokens on one slow core.
_LONGEST_S = 600.0
# Of one that is awaited, and was broken: whoever is asked for it may be what it ends.
_ATTEMPTS = 2
_CANCELLED = "the message was cancelled, and what a model generated for it"


class Model:
    """All models.

    Args:
        connect: gives the service; called when something is generated.
        cancelled: ends what is generated as soon as it is set.
    """

    def __init__(self, connect: "Connect", cancelled: asyncio.Event | None = None) -> None:
        self._connect = connect
        self._cancelled = cancelled

    def until(self, cancelled: asyncio.Event) -> "Model":
        """The same models for work that may be cancelled: `generate` raises Cancelled once the event is set."""
        return Model(self._connect, cancelled)

    def generate(
        self, prompt: str, *, model: str = DEFAULT_MODEL, max_tokens: int = 256, temperature: float = 0.0
    ) -> "Generation":
        """Text that a model generates: iterate over it for its pieces as they come, or await it for all of it.

        Nothing is asked before that. Leaving the iteration, and being cancelled, ends the generation. It ends with
        the call that is being handled, or after 10 minutes. Where what generates is lost, it is generated anew as
        long as nothing of it was handed over: iterated over until its first piece, awaited to its end, once.

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
            GenerationBroken: it was lost after that; what came of it is not all.
            Cancelled: the message that is handled was cancelled.
        """
        request = proto.GenerateRequest(model=model, prompt=prompt, max_tokens=max_tokens, temperature=temperature)
        return Generation(self._connect, request, self._cancelled)


class Generation:
    """A text that is generated. Each iteration over it, and each `await`, generates it anew."""

    def __init__(
        self, connect: "Connect", request: proto.GenerateRequest, cancelled: asyncio.Event | None = None
    ) -> None:
        self._connect = connect
        self._request = request
        self._cancelled = cancelled or asyncio.Event()

    def __aiter__(self) -> AsyncIterator[str]:
        return self._pieces()

    def __await__(self) -> Generator[object, None, str]:
        return self._whole().__await__()

    async def _pieces(self) -> AsyncGenerator[str, None]:
        if self._cancelled.is_set():
            raise errors.Cancelled(_CANCELLED)
        call = self._connect().Generate(self._request, timeout=_LONGEST_S)
        ending = asyncio.ensure_future(self._cancelled.wait())
        ending.add_done_callback(lambda _: call.cancel())
        came = False
        try:
            async for answer in call:
                came = True
                if answer.text:
                    yield answer.text
        except errors.Unavailable as error:
            # Before, the client has asked again itself.
            if not came:
                raise
            raise errors.GenerationBroken(
                f"the model was lost while it generated ({error.message}); what came of its text is not all: "
                "generate it anew",
                metadata={"cause": error.reason},
            ) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            # Of the call, that is, and not of the task that reads it.
            if self._cancelled.is_set() and not (task and task.cancelling()):
                raise errors.Cancelled(_CANCELLED) from None
            raise
        finally:
            ending.cancel()
            call.cancel()

    async def _whole(self) -> str:
        for attempt in itertools.count(1):
            try:
                async with aclosing(self._pieces()) as pieces:
                    return "".join([piece async for piece in pieces])
            except errors.GenerationBroken:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("never reached")
