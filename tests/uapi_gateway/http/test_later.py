"""An application that is made when it is first asked for, and what it says when the gateway ends."""

import asyncio
import json
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from uapi_gateway.http.later import Later

SCOPE: Scope = {"type": "http"}


async def nothing() -> Any:
    """Nothing is received."""


async def test_it_is_made_once() -> None:
    made = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start"})

    def make() -> ASGIApp:
        made.append(1)
        return application

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    later = Later(make)
    assert not made
    await asyncio.gather(*(later(SCOPE, nothing, send) for _ in range(3)))
    assert (made, len(sent)) == ([1], 3)


@pytest.mark.parametrize("begun", [True, False])
async def test_who_waits_when_the_gateway_ends_is_told_to_ask_again(begun: bool) -> None:
    waits = asyncio.Event()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if begun:
            await send({"type": "http.response.start"})
        waits.set()
        await asyncio.Event().wait()

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    task = asyncio.create_task(Later(lambda: application)(SCOPE, nothing, send))
    await waits.wait()
    task.cancel()
    await task
    if begun:
        # Cut: nobody takes it for whole.
        assert [message["type"] for message in sent] == ["http.response.start"]
    else:
        assert [message.get("status", 503) for message in sent] == [503, 503]
        assert json.loads(sent[1]["body"])["error"]["code"] == "UNAVAILABLE"
