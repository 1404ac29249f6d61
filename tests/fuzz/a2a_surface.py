"""What callers of A2A send: requests in JSON-RPC and REST, ids of tasks, tokens of pages."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from a2a.utils.errors import InvalidParamsError
from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto

from tests.fuzz.target import Target, is_said, text
from uapi_gateway.a2a import identifiers, listing
from uapi_gateway.a2a.core import Core
from uapi_gateway.a2a.surface import Surface
from uapi_gateway.access.policy import Caller, Policy
from uapi_gateway.conversations.sending import SERVICE, checked_id
from uapi_gateway.conversations.store import Courses, Key, Page
from uapi_gateway.registry import Agent, Registry

_AGENT = Agent("helper", (SERVICE,), ())
# The first byte of an input says where it goes.
_PATHS = (
    ("POST", ""),
    ("POST", "/message:send"),
    ("POST", "/message:stream"),
    ("POST", "/tasks/c.m:cancel"),
    ("POST", "/tasks/c.m/pushNotificationConfigs"),
    ("GET", "/tasks"),
)
_TASK_ID = re.compile(r"[A-Za-z0-9._~-]+")


class _Conversations:
    """A sender whose agent says what it hears, and a log with nothing on it."""

    def admit(self, caller: Caller, name: str) -> Agent:
        return _AGENT

    async def stream(
        self, caller: Caller, agent: str, request: proto.StreamMessageRequest
    ) -> AsyncGenerator[proto.StreamMessageResponse, None]:
        assert checked_id(request.conversation_id, "conversation's id")
        checked_id(request.message_id, "message's id")
        events = (proto.Event(message=request.message), proto.Event(completion=request.message))
        for sequence, event in enumerate(events, 1):
            event.sequence, event.message_id = sequence, request.message_id
            yield proto.StreamMessageResponse(conversation_id=request.conversation_id, event=event)

    async def watch(self, key: Key, *_: Any, **__: Any) -> AsyncIterator[proto.Event]:
        raise errors.ConversationNotFound(key.conversation_id)
        yield

    async def messages(self, key: Key, *_: Any, **__: Any) -> Courses:
        raise errors.ConversationNotFound(key.conversation_id)

    async def find(self, key: Key, message_id: str = "") -> proto.Conversation:
        raise errors.ConversationNotFound(key.conversation_id)

    async def list(self, principal: str, agent: str, page_size: int, page_token: str) -> Page:
        return Page((), "")

    async def cancel(self, key: Key, message_id: str) -> "proto.MessageStatus.ValueType":
        raise errors.ConversationNotFound(key.conversation_id)


def _application() -> Any:
    conversing = _Conversations()
    return Surface(Core(Registry(), Policy, conversing, conversing, tls=False, grpc_port=1)).application


_APPLICATION = _application()


def a2a(data: bytes) -> None:
    """A request: answered, as JSON or a stream of it; a mistake of the caller's is never one of ours."""
    method, path = _PATHS[data[0] % len(_PATHS)] if data else _PATHS[0]
    status, body = asyncio.run(_answer(method, path, data[1:]))
    assert status < 500, body
    page = body.decode()
    documents = [line.removeprefix("data: ") for line in page.splitlines() if line.startswith("data: ")] or [page]
    for document in documents:
        error = json.loads(document).get("error") or {}
        is_said(error.get("message", ""))
        assert error.get("code") != -32603, error


async def _answer(method: str, path: str, body: bytes) -> tuple[int, bytes]:
    sent: list[dict[str, Any]] = []
    ended = asyncio.Event()
    given = [{"type": "http.request", "body": body if method == "POST" else b""}]

    async def receive() -> dict[str, Any]:
        if given:
            return given.pop()
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            ended.set()

    scope = {
        "type": "http",
        "method": method,
        "path": f"/agents/helper/a2a{path}",
        "query_string": body if method == "GET" else b"",
        "headers": [(b"host", b"localhost"), (b"a2a-version", b"1.0"), (b"content-type", b"application/json")],
    }
    await _APPLICATION(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def a2a_names(data: bytes) -> None:
    """A task's id and a page's token: taken apart, and only what was written here."""
    written = text(data)
    parsed = identifiers.parse(written)
    if parsed is not None:
        assert identifiers.task_id(*parsed) == written
        assert _TASK_ID.fullmatch(written)
        for part in parsed:
            checked_id(part, "id")
    try:
        listing.parsed(written)
    except InvalidParamsError as error:
        is_said(error.message)
    ids = [part[:200] for part in written.encode("ascii", "ignore").decode().split("\n")]
    if len(ids) == 2 and all(part and part.isprintable() for part in ids):
        assert identifiers.parse(identifiers.task_id(*ids)) == tuple(ids)


TARGETS = [
    Target(
        "a2a",
        a2a,
        (
            b'{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":{',
            b'"message":{"messageId":"m","role":"ROLE_USER","parts":[{"text":"',
            b'"contextId":"',
            b'"taskId":"c.m"',
            b'"metadata":{',
            b'"data":{',
            b'"raw":"',
            b'"configuration":{"historyLength":',
            b"NaN",
            b"Infinity",
            b"pageSize=",
            b"pageToken=",
            b"status=TASK_STATE_FAILED",
            b"statusTimestampAfter=",
        ),
    ),
    Target("a2a-names", a2a_names, (b"~", b"~2e", b".", b"W10=", b"~7f", b"~41")),
]
