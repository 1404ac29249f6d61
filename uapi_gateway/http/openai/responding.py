"""`/v1/responses`: a response is a message, read from the log as often as somebody asks."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.errors import AgentError, Unavailable
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from uapi_gateway.access.policy import Caller
from uapi_gateway.conversations.sending import converses, ended, failure_of
from uapi_gateway.conversations.store import Key
from uapi_gateway.http.openai import identifiers, messages, refusals, requests, surface
from uapi_gateway.http.openai.identifiers import Place
from uapi_gateway.http.openai.requests import INSTRUCTIONS, ResponseRequest
from uapi_gateway.http.openai.responses import ResponseBuilder
from uapi_gateway.http.openai.surface import Exchange, Surface
from uapi_gateway.http.presence import while_there
from uapi_gateway.registry import Agent

# A handler that is cancelled has 5 s to end.
_CANCEL_WAIT_S = 10.0
_ITEMS, _MOST_ITEMS = 20, 100


class Responses:
    """The endpoints."""

    def __init__(self, on: Surface) -> None:
        self._on = on

    async def create(self, request: Request) -> Response:
        self._on.reader(request)
        asked = requests.read(ResponseRequest, await surface.body_of(request))
        caller = self._on.caller(request)
        agent = self._on.admit(caller, asked.model)
        if asked.background and not converses(agent):
            raise refusals.unsupported("background", f"agent '{agent.agent_id}' keeps no conversations")
        message, own = await self._message(request, asked, caller, agent)
        unstored = asked.store is False and own
        sent = await while_there(request, surface.send(self._on, caller, message, agent, unstored=unstored))
        builder = ResponseBuilder(sent.place, time.time())
        if asked.stream:
            return surface.EventStream(_told(sent.all(), builder, -1), sent.place.response_id, sent)
        if not asked.background:
            return await while_there(request, _whole(sent, builder))
        builder.on(sent.first)
        await sent.close()
        return _document(builder, sent.place)

    async def retrieve(self, request: Request) -> Response:
        place, key = self._found(request)
        after = _number(request, "starting_after", -1, 2**53)
        if request.query_params.get("stream") in ("true", "1"):
            # Before anything is said: whether there is such a message.
            events = await self._watched(key, place, follow=True)
            return surface.EventStream(_told(events, ResponseBuilder(place, time.time()), after), place.response_id)
        return _document(await self._read(key, place), place)

    async def cancel(self, request: Request) -> Response:
        place, key = self._found(request)
        with _its_own(place):
            await self._on.log.cancel(key, place.message_id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CANCEL_WAIT_S):
                return _document(await self._read(key, place, follow=True), place)
        return _document(await self._read(key, place), place)

    async def delete(self, request: Request) -> Response:
        place, key = self._found(request)
        if not await self._is_all(key, place):
            raise errors.FailedPrecondition(
                "the response is part of a conversation, which is deleted as a whole: "
                f"`agent conversations delete {place.agent} {place.conversation_id}`",
                reason="PART_OF_CONVERSATION",
            )
        with _its_own(place):
            await self._on.log.delete(key)
        return JSONResponse({"id": place.response_id, "object": "response", "deleted": True})

    async def input_items(self, request: Request) -> Response:
        place, key = self._found(request)
        limit = _number(request, "limit", _ITEMS, _MOST_ITEMS)
        items = (await self._read(key, place)).input_items()
        if request.query_params.get("order", "desc") != "asc":
            items.reverse()
        if after := request.query_params.get("after"):
            at = next((n for n, item in enumerate(items) if item["id"] == after), None)
            if at is None:
                raise refusals.invalid("'after' is the id of no item", "after")
            items = items[at + 1 :]
        page = items[: max(1, limit)]
        first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
        listed = {"data": page, "first_id": first, "last_id": last, "has_more": len(page) < len(items)}
        return JSONResponse({"object": "list", **listed})

    async def _message(
        self, request: Request, asked: ResponseRequest, caller: Caller, agent: Agent
    ) -> tuple[proto.StreamMessageRequest, bool]:
        """The message that a request is, and whether its conversation is its own."""
        if isinstance(asked.input, str):
            earlier, last = list[proto.ChatMessage](), messages.of_text(asked.input)
        else:
            earlier, last = messages.history(messages.of_input(asked.input), "input")
        key = surface.idempotency_key(request)
        requests.check_storing(asked.store, key)
        named = surface.named_conversation(request, asked.conversation_id, "conversation")
        if asked.previous_response_id is not None:
            named, before = await self._continued(asked.previous_response_id, caller, agent)
            earlier = [*before, *earlier]
        if named and earlier and await self._is_there(Key(caller.principal, agent.agent_id, named)):
            raise refusals.invalid(
                f"conversation '{named}' knows what was said in it; send one message as the input", "input"
            )
        if asked.instructions:
            instructions = messages.of_text(asked.instructions, "system")
            instructions.metadata[INSTRUCTIONS] = "true"
            earlier = [instructions, *earlier]
        last.metadata.update({**(asked.metadata or {}), **asked.options()})
        message = proto.StreamMessageRequest(
            conversation_id=named or identifiers.new_conversation_id(key),
            message_id=key or identifiers.new_message_id(),
            message=last,
            earlier=earlier,
        )
        return message, not named

    async def _continued(self, response_id: str, caller: Caller, agent: Agent) -> tuple[str, list[proto.ChatMessage]]:
        """Where a response is gone on from: its conversation; or where that went on already, "" and what was said."""
        place = identifiers.place_of(response_id)
        if place.agent != agent.agent_id:
            raise refusals.invalid(
                f"the previous response is of '{place.agent}'; name that as the model", "previous_response_id"
            )
        key = Key(caller.principal, place.agent, place.conversation_id)
        conversation = await self._conversation(key, place)
        last = conversation.messages[0].last_sequence
        if last in (0, conversation.last_sequence):
            return place.conversation_id, []
        return "", await self._said(key, place, conversation.first_sequence)

    async def _said(self, key: Key, place: Place, first_sequence: int) -> list[proto.ChatMessage]:
        """What was said until a message was answered.

        Raises:
            MessageTooLarge: it is more than goes with a message.
        """
        said: dict[str, list[proto.ChatMessage]] = {"": []}
        size_bytes = 0
        async with contextlib.aclosing(surface.events_of(self._on, key, first_sequence - 1)) as events:
            async for event in events:
                match event.WhichOneof("content"):
                    case "earlier":
                        said[""].append(event.earlier)
                        size_bytes += event.earlier.ByteSize()
                    case "message":
                        said[event.message_id] = [event.message]
                        size_bytes += event.message.ByteSize()
                    case "completion" if event.message_id in said:
                        said[event.message_id].append(event.completion)
                        size_bytes += event.completion.ByteSize()
                if size_bytes > surface.LONGEST_BYTES:
                    raise errors.MessageTooLarge(
                        f"what was said until that response is larger than {surface.LONGEST_BYTES // 2**20} MiB; "
                        "go on with the latest response of its conversation",
                        metadata={"param": "previous_response_id"},
                    )
                if event.message_id == place.message_id and ended(event):
                    break
        upto = list(said).index(place.message_id)
        return [each for entry in list(said.values())[: upto + 1] for each in entry]

    async def _is_all(self, key: Key, place: Place) -> bool:
        """Whether a response is all that its conversation has."""
        conversation = await self._conversation(key, place)
        watched = surface.events_of(self._on, key, conversation.first_sequence - 1)
        async with contextlib.aclosing(watched) as events:
            async for event in events:
                if event.message_id not in ("", place.message_id):
                    return False
        return True

    async def _is_there(self, key: Key) -> bool:
        try:
            await self._on.log.find(key)
        except errors.NotFound:
            return False
        return True

    def _found(self, request: Request) -> tuple[Place, Key]:
        self._on.reader(request)
        place = identifiers.place_of(request.path_params["id"])
        # Whoever may not call the agent (any more) reads nothing of what it said either.
        return place, self._on.key(request, place.agent, place.conversation_id)

    async def _conversation(self, key: Key, place: Place) -> proto.Conversation:
        """The conversation that has a response, with its message."""
        with _its_own(place):
            conversation = await self._on.log.find(key, place.message_id)
        if not conversation.messages:
            raise identifiers.no_response(place.response_id)
        return conversation

    async def _watched(self, key: Key, place: Place, *, follow: bool = False) -> AsyncGenerator[proto.Event, None]:
        """The events of a response; with `follow` until it has ended."""
        # Older ones are not kept, and asking for them is an error.
        first = (await self._conversation(key, place)).first_sequence
        return surface.events_of(self._on, key, first - 1, message_id=place.message_id, follow=follow)

    async def _read(self, key: Key, place: Place, *, follow: bool = False) -> ResponseBuilder:
        """What the log has of a response; with `follow` when it has ended."""
        builder = ResponseBuilder(place, time.time())
        with _its_own(place):
            async with contextlib.aclosing(await self._watched(key, place, follow=follow)) as events:
                async for event in events:
                    builder.on(event)
        return builder


@contextlib.contextmanager
def _its_own(place: Place) -> Any:
    """What the log does not know is no response."""
    try:
        yield
    except errors.NotFound:
        raise identifiers.no_response(place.response_id) from None


def _number(request: Request, name: str, otherwise: int, most: int) -> int:
    said = request.query_params.get(name)
    if said is None:
        return otherwise
    if not (said.isascii() and said.isdigit() and len(said) < 17 and int(said) <= most):
        raise refusals.invalid(f"'{name}' must be a number from 0 to {most}", name)
    return int(said)


def _document(builder: ResponseBuilder, place: Place) -> Response:
    return JSONResponse(builder.document(), headers={surface.REQUEST_ID: place.response_id})


async def _whole(sent: Exchange, builder: ResponseBuilder) -> Response:
    try:
        async with contextlib.aclosing(sent.all()) as events:
            async for event in events:
                builder.on(event)
                if event.HasField("failure") and builder.status == "failed":
                    return refusals.response(failure_of(event.failure), handled=True)
    except AgentError as error:
        return refusals.response(error, handled=True)
    if not builder.ended:
        return refusals.response(_cut(), handled=True)
    return _document(builder, sent.place)


async def _told(
    events: AsyncGenerator[proto.Event, None], builder: ResponseBuilder, after: int
) -> AsyncGenerator[bytes, None]:
    """The stream, from the event after a sequence number on."""
    with surface.foreseen() as wrong:
        async with contextlib.aclosing(events):
            async for event in events:
                for told in builder.on(event):
                    if told["sequence_number"] > after:
                        yield _sse(told)
        if not builder.ended:
            raise _cut()
    for error in wrong:
        yield _sse(builder.error_event(refusals.body(error)))


def _sse(told: Mapping[str, Any]) -> bytes:
    return surface.sse(told, name=told["type"])


def _cut() -> AgentError:
    return Unavailable("the reply was cut off; retrieve the response to go on", reason="REPLY_CUT_OFF")
