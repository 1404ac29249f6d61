"""The HTTP API of agents and their conversations. Imported when it is first asked: FastAPI takes its time."""

import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from importlib.metadata import version
from typing import Annotated, Any

from agentruntime import trace
from agentruntime._proto.uapi.v1 import access_pb2 as access
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from fastapi import Depends, FastAPI, Header, Path, Query
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from uapi_gateway.conversations.sending import checked_id, converses, shown
from uapi_gateway.http import bodies, bounds, description, event_stream, failures, presence
from uapi_gateway.http.core import Core
from uapi_gateway.http.event_stream import EventStream
from uapi_gateway.registry import Agent

_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {event_stream.MEDIA_TYPE: {"schema": {"type": "string"}}}, "description": "JSON, or events"},
    "default": {"model": bodies.FailureResponse, "description": "It has failed."},
}
_FAILS: dict[int | str, dict[str, Any]] = {"default": _EVENTS["default"]}
_CONVERSATIONS = "/agents/{agent_name}/conversations"
_CONVERSATION = _CONVERSATIONS + "/{conversation_id}"
_AgentName = Annotated[str, Path(description="An agent's name.")]
_ConversationId = Annotated[str, Path(description="The caller's own conversation with the agent.")]
_LastEventId = Annotated[str, Header(alias="last-event-id", description="Go on after this event.")]
_Accept = Annotated[str, Header(description="text/event-stream asks for events.")]


def application(core: Core) -> ASGIApp:
    """The ASGI application."""
    made = FastAPI(
        title="Agents",
        version=version("agentruntime"),
        description=description.INTRODUCTION,
        docs_url=None,
        redoc_url=None,
    )
    made.router.route_class = _Bounded
    failures.tell(made)
    # A function to each group of paths.
    for add in (_agents, _run, _conversations, _events, _cancel):
        add(made, core)

    @made.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(description.page(made.openapi()))

    return _Entrance(made)


def _agents(made: FastAPI, core: Core) -> None:
    @made.get("/agents", responses=_FAILS, summary="The agents that the caller may call")
    async def list_agents(request: Request) -> bodies.AgentList:
        found = core.agents(core.caller(request))
        return bodies.AgentList(agents=[bodies.AgentEntry.of(agent) for agent in found])


def _run(made: FastAPI, core: Core) -> None:
    async def admitted(request: Request, agent_name: _AgentName) -> Agent:
        return core.sender.admit(core.caller(request), agent_name)

    @made.post(
        "/agents/{agent_name}/run",
        responses=_EVENTS,
        response_model=bodies.RunResponse,
        response_model_exclude_none=True,
        summary="Sends a message to an agent, and answers with its reply, or with events as they happen",
    )
    async def run(
        request: Request,
        agent_name: _AgentName,
        # Before anything is made of the body.
        agent: Annotated[Agent, Depends(admitted)],
        body: bodies.RunRequest,
        *,
        accept: _Accept = "",
        last_event_id: _LastEventId = "",
    ) -> Any:
        caller, asked = core.caller(request), body.message(agent_name)
        if not (body.stream or event_stream.wanted(accept)):
            collecting = core.sender.collect(caller, agent_name, asked, timeout_s=body.timeout_s)
            return bodies.RunResponse.of(await presence.while_there(request, collecting))
        # Without an id it is a new message, of which nothing was told; where nothing is kept, nothing was numbered.
        after = event_stream.last_id(last_event_id) if body.message_id and converses(agent) else 0
        responses = core.sender.stream(caller, agent_name, asked, timeout_s=body.timeout_s, after=after)
        events = _events_of(responses)
        # A refusal is told by the status. Whoever goes on has had its first event, and may have to wait for the next.
        if after:
            checked_id(asked.conversation_id, "conversation's id")
            checked_id(asked.message_id, "message's id")
            return EventStream(asked.conversation_id, events)
        first = await presence.while_there(request, anext(events, None))
        return EventStream(asked.conversation_id, events, first)


def _conversations(made: FastAPI, core: Core) -> None:
    @made.get(
        _CONVERSATIONS,
        responses=_FAILS,
        summary="The caller's conversations with an agent, those that changed last first",
    )
    async def list_conversations(
        request: Request,
        agent_name: _AgentName,
        page_size: Annotated[int, Query(ge=1, le=bodies.LARGEST_PAGE)] = 100,
        page_token: str = "",
    ) -> bodies.ConversationList:
        key = core.key(request, agent_name, "")
        page = await core.log.list(key.principal, key.agent, page_size, page_token)
        return bodies.ConversationList(
            conversations=[bodies.ConversationEntry.of(each) for each in page.conversations],
            next_page_token=page.next_token,
        )

    @made.get(_CONVERSATION, responses=_FAILS, summary="A conversation, and what of it has not ended")
    async def get_conversation(
        request: Request, agent_name: _AgentName, conversation_id: _ConversationId
    ) -> bodies.ConversationEntry:
        return bodies.ConversationEntry.of(await core.log.find(core.key(request, agent_name, conversation_id)))

    @made.delete(_CONVERSATION, responses=_FAILS, status_code=204, summary="Deletes a conversation, for good")
    async def delete(request: Request, agent_name: _AgentName, conversation_id: _ConversationId) -> None:
        await core.log.delete(core.key(request, agent_name, conversation_id))


def _events(made: FastAPI, core: Core) -> None:
    @made.get(
        _CONVERSATION + "/events",
        responses=_EVENTS,
        response_model=bodies.EventList,
        summary="What has happened in a conversation, and as events also what happens next",
    )
    async def list_events(
        request: Request,
        agent_name: _AgentName,
        conversation_id: _ConversationId,
        *,
        reading: Annotated[bodies.Reading, Query()],
        accept: _Accept = "",
        last_event_id: _LastEventId = "",
    ) -> Any:
        key = core.key(request, agent_name, conversation_id)
        operates = core.caller(request).may(access.ROLE_OPERATE, key.agent)
        after = event_stream.last_id(last_event_id) or reading.after
        streams = reading.follow or event_stream.wanted(accept)
        if not streams:
            read, more = await core.log.read(key, after, reading.limit, message_id=reading.message_id)
            listed = [event_stream.document(conversation_id, shown(event, operates)) for event in read]
            return bodies.EventList(events=listed, more=more)
        # Before anything is sent, it is seen whether there is something to be sent.
        await core.log.read(key, after, 1, message_id=reading.message_id)
        watched: Any = core.log.watch(key, after, message_id=reading.message_id, follow=reading.follow is not False)
        return EventStream(conversation_id, _shown(watched, operates))


def _cancel(made: FastAPI, core: Core) -> None:
    @made.post(
        _CONVERSATION + "/messages/{message_id}/cancel",
        responses=_FAILS,
        summary="Asks for the end of a message that runs or waits",
    )
    async def cancel(
        request: Request, agent_name: _AgentName, conversation_id: _ConversationId, message_id: str
    ) -> bodies.CancelResponse:
        key = core.key(request, agent_name, conversation_id)
        status = await core.log.cancel(key, checked_id(message_id, "message's id"))
        return bodies.CancelResponse(status=bodies.status_name(status))


async def _events_of(
    responses: AsyncGenerator[proto.StreamMessageResponse, None],
) -> AsyncGenerator[proto.Event, None]:
    async with contextlib.aclosing(responses):
        async for response in responses:
            yield response.event


async def _shown(watched: Any, operates: bool) -> AsyncGenerator[proto.Event, None]:
    async with contextlib.aclosing(watched) as events:
        async for event in events:
            yield shown(event, operates)


class _Bounded(APIRoute):
    """A route whose body is looked at before it is parsed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            bounds.check_body(await request.body())
            return await handle(request)

        return bounded


class _Entrance:
    """Takes up the caller's trace; and `curl -d` says that it sends a form, which nothing here takes."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        trace.enter(headers.get(trace.HEADER.encode(), b"").decode("latin-1") or None)
        if headers.get(b"content-type", b"").startswith(b"application/x-www-form-urlencoded"):
            others = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
            scope = {**scope, "headers": [*others, (b"content-type", b"application/json")]}
        try:
            await self._application(scope, receive, send)
        except Exception:
            if failures.TOLD not in scope:
                raise
