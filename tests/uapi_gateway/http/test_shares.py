"""One caller's requests in flight leave room for others, and for the pages of whoever looks after the platform."""

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from tests.waiting import eventually
from uapi_gateway.access.shares import InFlight
from uapi_gateway.http.shares import HttpShares

EVENTS, PAGES = "/agents/a/conversations/c/events", ("/health", "/health/a", "/metrics")


class Application:
    """Ends when it is let."""

    def __init__(self) -> None:
        self.inside = 0
        self.gate = asyncio.Event()
        self.shares = HttpShares(self, InFlight(each=2, all_=3))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.inside += 1
        try:
            await self.gate.wait()
            if scope["path"] == "/v1/fails":
                raise ValueError("it fails")
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})
        finally:
            self.inside -= 1

    async def request(self, principal: str, path: str = EVENTS) -> tuple[int, Any]:
        answer: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            answer.append(message)

        headers = [(b"x-uapi-principal", principal.encode())] if principal else []
        scope = {"type": "http", "method": "GET", "path": path, "headers": headers}
        await self.shares(scope, receive, send)
        return answer[0]["status"], json.loads(answer[1]["body"])


async def test_a_principal_has_its_share() -> None:
    application = Application()
    held = [asyncio.create_task(application.request(who)) for who in ("key:a", "key:a", "key:b")]
    await eventually(lambda: application.inside == 3)
    status, told = await application.request("key:a")
    assert (status, told["error"]["code"], told["error"]["reason"]) == (429, "RESOURCE_EXHAUSTED", "TOO_MANY_CALLS")
    assert "key:a has 2 calls in flight" in told["error"]["message"]
    _, told = await application.request("key:c", "/v1/chat/completions")
    assert (told["error"]["type"], told["error"]["code"]) == ("rate_limit_error", "TOO_MANY_CALLS")
    for path in ("/agents/a/a2a", "/agents/a/a2a/message:send", "/agents/a/.well-known/agent-card.json"):
        _, told = await application.request("key:c", path)
        assert told["error"]["details"][0]["reason"] == "TOO_MANY_CALLS"
    # This user, and pages.
    more = [
        asyncio.create_task(application.request(*each))
        for each in (("",), ("local",), *(("key:a", path) for path in PAGES))
    ]
    await eventually(lambda: application.inside == 3 + len(more))
    application.gate.set()
    assert {status for status, _ in await asyncio.gather(*held, *more)} == {200}


async def test_it_is_free_again_however_a_request_ends() -> None:
    application = Application()
    for _ in range(5):
        application.gate.clear()
        cancelled = asyncio.create_task(application.request("key:a"))
        fails = asyncio.create_task(application.request("key:a", "/v1/fails"))
        await eventually(lambda: application.inside == 2)
        cancelled.cancel()
        application.gate.set()
        for task, error in ((cancelled, asyncio.CancelledError), (fails, ValueError)):
            with pytest.raises(error):
                await task
