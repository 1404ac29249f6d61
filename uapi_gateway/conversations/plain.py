"""A message to an agent that holds no conversations but generates text: its prompt. Nothing is kept of it."""

import math
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence

from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import text_generation_pb2 as text
from agentruntime._proto.uapi.v1 import text_generation_pb2_grpc
from grpc import aio

from uapi_gateway.registry import Agent

# `max_tokens` is an int32.
_NO_NUMBER = 2**31
SERVICE = text.DESCRIPTOR.services_by_name["TextGenerationService"].full_name


def generates(agent: Agent) -> bool:
    """Whether a message can be its prompt."""
    return SERVICE in agent.services


def prompt(message: proto.ChatMessage, earlier: Iterable[proto.ChatMessage]) -> str:
    """What the agent is given: the message's text; with what was said before, a line for each, and who said it."""
    said = [*earlier, message]
    if len(said) == 1:
        return text_of(message)
    return "\n".join(f"{each.role or 'user'}: {text_of(each)}" for each in said)


def text_of(message: proto.ChatMessage) -> str:
    """Its text parts, joined."""
    return "".join(part.text for part in message.parts if part.WhichOneof("content") == "text")


async def generate(
    through: aio.Channel,
    agent: Agent,
    request: proto.StreamMessageRequest,
    metadata: Sequence[tuple[str, str]],
    timeout_s: float | None = None,
) -> AsyncGenerator[proto.Event, None]:
    """The events of a message, without sequence numbers, for none is on a log.

    Of the message's metadata `max_tokens` and `temperature` are looked at.

    Args:
        through: a channel to Envoy.
        agent: which.
        request: with the message's id.
        metadata: of the call.
        timeout_s: its deadline.

    Raises:
        NoConversations: it does not generate text either.
        InvalidArgument: a number is none.
        AgentError: as StreamText has it.
    """
    if not generates(agent):
        raise errors.NoConversations(
            f"agent '{agent.agent_id}' takes no messages: it has neither `on_message` nor `generate`; see its "
            "services by `agent list`"
        )
    said = request.message.metadata
    asked = text.StreamTextRequest(
        prompt=prompt(request.message, request.earlier),
        temperature=_number(said, "temperature"),
        max_tokens=int(_number(said, "max_tokens")),
    )
    begun = proto.Event(message_id=request.message_id, message=request.message)
    stub: text_generation_pb2_grpc.TextGenerationServiceAsyncStub = (
        text_generation_pb2_grpc.TextGenerationServiceStub(through)
    )
    call = stub.StreamText(asked, metadata=metadata, timeout=timeout_s)
    pieces: list[str] = []
    tokens = 0
    try:
        async for piece in call:
            # Not before: a call that fails until then is refused, and may be repeated.
            if not pieces:
                yield begun
            pieces.append(piece.text)
            tokens = piece.tokens_used
            yield proto.Event(message_id=request.message_id, chunk=proto.Part(text=piece.text))
    except aio.AioRpcError as error:
        raise status.decode(error) from error
    finally:
        call.cancel()
    if not pieces:
        yield begun
    reply = proto.ChatMessage(
        role="assistant",
        parts=[proto.Part(text="".join(pieces))],
        metadata={"completion_tokens": str(tokens)} if tokens else {},
    )
    yield proto.Event(message_id=request.message_id, completion=reply)


def _number(said: Mapping[str, str], name: str) -> float:
    try:
        number = float(said.get(name, 0))
    except ValueError:
        number = math.nan
    # NaN is not within anything.
    if not 0 <= number < _NO_NUMBER:
        raise errors.InvalidArgument(
            f"'{said[name]}' is no {name}; write a number from 0 to below 2147483648", reason="INVALID_DATA"
        )
    return number
