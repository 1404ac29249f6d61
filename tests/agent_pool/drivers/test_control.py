"""The pool's end of a control socket, with an agent at the other one."""

import asyncio
import json
import socket
import struct

import pytest

from agent_pool.drivers.control import ControlChannel, ControlClosed, Message


def on_event(message: Message) -> None:
    message["pid"] + 0


@pytest.mark.parametrize("said", [{"event": "exit"}, {"event": "exit", "pid": []}, {"id": []}, [], 5, None])
async def test_nonsense_closes_the_channel_and_nothing_else(said: object) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        channel = ControlChannel(ours, on_event)
        asked = asyncio.create_task(channel.request({"op": "children"}))
        body = json.dumps(said).encode()
        theirs.sendall(struct.pack(">I", len(body)) + body)
        await asyncio.wait_for(channel.closed.wait(), 5)
        with pytest.raises(ControlClosed):
            await asked
        await channel.close()
