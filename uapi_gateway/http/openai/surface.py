"""What the OpenAI surface stands on, and what all of its routes have: who calls, errors, server-sent events."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from agentruntime import errors, log
from agentruntime._proto.uapi.v1 import access_pb2
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from uapi_gateway.access.callers import refusal
from uapi_gateway.access.policy import Caller
from uapi_gateway.conversations import plain, sending
from uapi_gateway.conversations.sending import checked_id
from uapi_gateway.conversations.store import Key
from uapi_gateway.http.core import Core
from uapi_gateway.http.openai import identifiers, refusals
from uapi_gateway.registry import Agent
from uapi_gateway.xds.routes import CONVERSATION_HEADER

_log = log.get("uapi_gateway.openai")
# Of a request, as Envoy has it (xds/limits.py), for those who come without.
LONGEST_BYTES = 4 * 2**20
_IDEMPOTENCY_HEADER = "idempotency-key"
# By which the official client names a request in its errors.
REQUEST_ID = "x-request-id"
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Surface(Core):
    """What the routes use."""

    # Kept until they are done, whoever hangs up.
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def agents(self, caller: Caller) -> list[Agent]:
        """Those that the caller may ask something, by name."""
        found = Core.agents(self, caller)
        return [agent for agent in found if sending.converses(agent) or plain.generates(agent)]

    def admit(self, caller: Caller, model: str) -> Agent:
        """The agent that a caller names.

        Raises:
            Unauthenticated, PermissionDenied: it may not call such an agent.
            AgentNotFound: there is none.
        """
        try:
            return self.sender.admit(caller, model)
        except errors.AgentNotFound as error:
            error.metadata["param"] = "model"
            raise

    def reader(self, request: Request) -> str:
        """The principal of a caller who reads what is its own.

        Raises:
            Unauthenticated, PermissionDenied: it may call no agent at all.
        """
        caller = self.caller(request)
        if not caller.grants:
            raise refusal(caller, access_pb2.ROLE_CALL, ())
        return caller.principal

    async def forget(self, key: Key) -> None:
        """Deletes a conversation, also if whoever waits for that goes."""
        task = asyncio.create_task(self._forget(key))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        await asyncio.shield(task)

    async def _forget(self, key: Key) -> None:
        try:
            await self.log.delete(key)
        except errors.NotFound:
            pass  # of an agent that keeps no conversations
        except errors.AgentError as error:
            _log.error(
                "a conversation that was not to be stored is still there", agent=key.agent, error=error.message
            )


@dataclass
class Exchange:
    """One message on its way, and the events that come of it."""

    place: identifiers.Place
    first: proto.Event
    events: AsyncGenerator[proto.StreamMessageResponse, None]
    # What to delete afterwards.
    unstored: Key | None
    surface: Surface

    async def all(self) -> AsyncGenerator[proto.Event, None]:
        """The events; the end of this ends everything."""
        try:
            yield self.first
            async for answer in self.events:
                yield answer.event
        finally:
            await self.end()

    async def end(self) -> None:
        """Hears no more of it, and keeps no more than was asked for."""
        await self.close()
        forgotten, self.unstored = self.unstored, None
        if forgotten is not None:
            await self.surface.forget(forgotten)

    async def close(self) -> None:
        """Hears no more of it."""
        await self.events.aclose()


async def send(
    surface: Surface, caller: Caller, request: proto.StreamMessageRequest, agent: Agent, *, unstored: bool
) -> Exchange:
    """Sends a message, and returns when it is accepted.

    Args:
        surface: to be used.
        caller: who sends it.
        request: with the ids of conversation and message.
        agent: to whom.
        unstored: the conversation is this message's alone, and is to be deleted when it has ended.

    Raises:
        AgentError: it is not accepted.
    """
    events = surface.sender.stream(caller, agent.agent_id, request)
    place = identifiers.Place(agent.agent_id, request.conversation_id, request.message_id)
    key = Key(caller.principal, place.agent, place.conversation_id) if unstored else None
    try:
        answer = await anext(events, None)
    except asyncio.CancelledError:
        # Its caller has gone; it may be on the log by now.
        if key is not None:
            await surface.forget(key)
        raise
    if answer is None:
        raise errors.Unavailable(f"agent '{agent.agent_id}' did not answer; try again", reason="WORKER_LOST")
    return Exchange(place, answer.event, events, key, surface)


def events_of(
    surface: Surface, key: Key, after: int = 0, *, message_id: str = "", follow: bool = False
) -> AsyncGenerator[proto.Event, None]:
    """The events of a conversation, in a form that can be closed."""
    watched: Any = surface.log.watch(key, after, message_id=message_id, follow=follow)
    events: AsyncGenerator[proto.Event, None] = watched
    return events


def named_conversation(request: Request, said: str, param: str) -> str:
    """The conversation that a request names by its header or in its body, or "".

    Raises:
        InvalidArgument: it cannot be one, or there are two.
    """
    header = request.headers.get(CONVERSATION_HEADER, "")
    if header and said and header != said:
        raise refusals.invalid(f"'{param}' and the header {CONVERSATION_HEADER} name two conversations", param)
    named = said or header
    try:
        return checked_id(named, "conversation's id") if named else ""
    except errors.InvalidArgument as error:
        error.metadata["param"] = param
        raise


def idempotency_key(request: Request) -> str:
    """By which a request may be repeated, or "".

    Raises:
        InvalidArgument: it cannot be one.
    """
    said = request.headers.get(_IDEMPOTENCY_HEADER, "")
    return checked_id(said, "Idempotency-Key") if said else ""


async def body_of(request: Request) -> bytes:
    """The body of a request.

    Raises:
        MessageTooLarge: it is longer than any that is taken.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LONGEST_BYTES:
            raise errors.MessageTooLarge(f"the request is larger than {LONGEST_BYTES // 2**20} MiB")
    return bytes(body)


def guarded(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose errors are told as the API does."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except errors.AgentError as error:
            return refusals.response(error)
        except Exception:
            return refusals.response(_unforeseen(request.url.path))

    return answer


class EventStream(StreamingResponse):
    """An answer of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

    Args:
        pieces: the events, written.
        request_id: for the header.
        exchange: what they come of; ended with the stream, also where nobody has read of it.
    """

    def __init__(
        self, pieces: AsyncGenerator[bytes, None], request_id: str, exchange: Exchange | None = None
    ) -> None:
        self._pieces = pieces
        self._exchange = exchange
        headers = {REQUEST_ID: request_id, "cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(pieces, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with contextlib.aclosing(self._pieces):
                await super().__call__(scope, receive, send)
        finally:
            if self._exchange is not None:
                await self._exchange.end()


def sse(content: Mapping[str, Any], *, name: str = "") -> bytes:
    """One event; JSON has no line breaks of its own here."""
    line = f"event: {name}\n" if name else ""
    return f"{line}data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


@contextlib.contextmanager
def foreseen() -> Iterator[list[errors.AgentError]]:
    """Within a stream: what goes wrong is told in it, for its status is said already."""
    wrong: list[errors.AgentError] = []
    try:
        yield wrong
    except errors.AgentError as error:
        wrong.append(error)
    except Exception:
        wrong.append(_unforeseen("a stream"))


def _unforeseen(where: str) -> errors.Internal:
    """What is told of a bug, which the log has the rest of."""
    request_id = secrets.token_hex(8)
    _log.exception("unforeseen error", path=where, request_id=request_id)
    return errors.Internal(f"internal error, request id {request_id}")
