"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) of conversations.

    id: 3
    event: chunk
    data: {"conversation_id": "c", "message_id": "m", "sequence": 3, "time": "…", "chunk": {"text": "You "}}

A comment every few seconds says that the connection lives, and finds out when it does not.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.errors import AgentError
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from uapi_gateway.http import failures, json_form

MEDIA_TYPE = "text/event-stream"
# Well below the minute after which proxies take a quiet connection for a dead one.
_BEAT_S = 15.0
_BEAT = b": \n\n"
_NUMBERS = ("sequence", "token")


def wanted(accept: str) -> bool:
    """Whether an Accept header asks for events."""
    return any(each.partition(";")[0].strip().lower() == MEDIA_TYPE for each in accept.split(","))


def last_id(header: str) -> int:
    """The sequence number in a Last-Event-ID header; 0 for what is none of ours."""
    return int(header) if header.isascii() and header.isdecimal() and len(header) < 20 else 0


def document(conversation_id: str, event: proto.Event) -> dict[str, Any]:
    """An event as JSON; its content is the field named after its kind."""
    content = json_form.fields(event)
    # Which JSON's form of protobuf writes as strings.
    content.update({name: int(content[name]) for name in _NUMBERS if name in content})
    if "state" in content:
        content["state"] = {"version": event.state.version}
    kind = event.WhichOneof("content")
    return {"conversation_id": conversation_id, **content, **({kind: content.get(kind, {})} if kind else {})}


class EventStream(StreamingResponse):
    """Events, one after the other, to a caller who may hang up.

    Args:
        conversation_id: of which conversation.
        events: what is to come.
        first: what came before those, if it was waited for.
    """

    def __init__(
        self, conversation_id: str, events: AsyncGenerator[proto.Event, None], first: proto.Event | None = None
    ) -> None:
        self._events = events
        self._lines = _lines(conversation_id, events, first)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(self._lines, media_type=MEDIA_TYPE, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # However it ends: what it waits for must not be waited for longer.
        async with contextlib.aclosing(self._events), contextlib.aclosing(self._lines):
            await super().__call__(scope, receive, send)


async def _lines(
    conversation_id: str, events: AsyncGenerator[proto.Event, None], first: proto.Event | None
) -> AsyncGenerator[bytes, None]:
    if first is not None:
        yield _event(conversation_id, first)
    try:
        async with contextlib.aclosing(_with_beats(events)) as beaten:
            async for event in beaten:
                yield _BEAT if event is None else _event(conversation_id, event)
    except AgentError as error:
        # The status has been sent.
        yield _written("error", failures.document(error))


async def _with_beats(events: AsyncGenerator[proto.Event, None]) -> AsyncGenerator[proto.Event | None, None]:
    """The events, and None whenever there was none for a while."""
    waiting: asyncio.Future[proto.Event | None] | None = None
    try:
        while True:
            waiting = asyncio.ensure_future(_next(events))
            while not (await asyncio.wait((waiting,), timeout=_BEAT_S))[0]:
                yield None
            if (event := waiting.result()) is None:
                return
            yield event
    finally:
        if waiting is not None and not waiting.done():
            waiting.cancel()
            await asyncio.wait((waiting,))


async def _next(events: AsyncIterator[proto.Event]) -> proto.Event | None:
    return await anext(events, None)


def _event(conversation_id: str, event: proto.Event) -> bytes:
    # One without a number is on no log, and nothing can go on after it.
    numbered = f"id: {event.sequence}\n" if event.sequence else ""
    return numbered.encode() + _written(event.WhichOneof("content") or "", document(conversation_id, event))


def _written(kind: str, content: dict[str, Any]) -> bytes:
    # JSON has no line breaks but escaped ones.
    return f"event: {kind}\ndata: {json.dumps(content, ensure_ascii=False)}\n\n".encode()
