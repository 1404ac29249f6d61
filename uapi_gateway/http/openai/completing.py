"""`POST /v1/chat/completions`: a message in a conversation of its own, or in one that the request names."""

import contextlib
from collections.abc import AsyncGenerator

from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.errors import AgentError, Unavailable
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from uapi_gateway.http.openai import identifiers, messages, refusals, requests, surface
from uapi_gateway.http.openai.chat import Completion
from uapi_gateway.http.openai.requests import ChatRequest
from uapi_gateway.http.openai.surface import Exchange, Surface
from uapi_gateway.http.openai.usage import text_bytes
from uapi_gateway.http.presence import while_there

# A client may name its conversation there.
_CONVERSATION = "conversation_id"


class Completions:
    """The endpoint."""

    def __init__(self, on: Surface) -> None:
        self._on = on

    async def create(self, request: Request) -> Response:
        self._on.reader(request)
        asked = requests.read(ChatRequest, await surface.body_of(request))
        caller = self._on.caller(request)
        agent = self._on.admit(caller, asked.model)
        named = surface.named_conversation(
            request, (asked.metadata or {}).get(_CONVERSATION, ""), f"metadata.{_CONVERSATION}"
        )
        key = surface.idempotency_key(request)
        requests.check_storing(asked.store, key)
        earlier, last = messages.history(asked.messages, "messages")
        last.metadata.update({**(asked.metadata or {}), **asked.options()})
        message = proto.StreamMessageRequest(
            conversation_id=named or identifiers.new_conversation_id(key),
            message_id=key or identifiers.new_message_id(),
            message=last,
            earlier=earlier,
        )
        unstored = asked.store is False and not named
        sent = await while_there(request, surface.send(self._on, caller, message, agent, unstored=unstored))
        with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        completion = Completion(
            sent.place, text_bytes([*earlier, last]), streams=bool(asked.stream), with_usage=with_usage
        )
        if asked.stream:
            request_id = sent.place.written(identifiers.COMPLETION)
            return surface.EventStream(_stream(sent, completion), request_id, sent)
        return await while_there(request, _whole(sent, completion))


async def _whole(sent: Exchange, completion: Completion) -> Response:
    try:
        async with contextlib.aclosing(sent.all()) as events:
            async for event in events:
                completion.on(event)
    except AgentError as error:
        return refusals.response(error, handled=True)
    if not completion.ended:
        return refusals.response(_cut(), handled=True)
    headers = {surface.REQUEST_ID: sent.place.written(identifiers.COMPLETION)}
    return JSONResponse(completion.whole(), headers=headers)


async def _stream(sent: Exchange, completion: Completion) -> AsyncGenerator[bytes, None]:
    with surface.foreseen() as wrong:
        async with contextlib.aclosing(sent.all()) as events:
            async for event in events:
                for chunk in completion.on(event):
                    yield surface.sse(chunk)
        if not completion.ended:
            raise _cut()
    for error in wrong:
        yield surface.sse({"error": refusals.body(error)})
        return
    yield b"data: [DONE]\n\n"


def _cut() -> AgentError:
    return Unavailable("the reply was cut off; ask for it again", reason="REPLY_CUT_OFF")
