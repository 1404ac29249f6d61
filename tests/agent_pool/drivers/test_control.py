"""The pool's end of a control socket, with an agent at the other one."""

import asyncio
import json
import socket
import struct
from pathlib import Path

import pytest

from agent_pool.drivers.control import ControlChannel, ControlClosed, Message, accepted, listen


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


async def test_a_wait_for_a_connection_that_is_given_up_watches_the_listener_no_more(short_directory: Path) -> None:
    with listen(short_directory / "s") as listener:
        listener.setblocking(False)
        waiting = asyncio.create_task(accepted(listener, asyncio.Event()))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not asyncio.get_running_loop().remove_reader(listener)


async def test_who_connected_before_the_end_is_heard(short_directory: Path) -> None:
    ended = asyncio.Event()
    with listen(short_directory / "s") as listener, socket.socket(socket.AF_UNIX) as caller:
        listener.setblocking(False)
        waiting = asyncio.create_task(accepted(listener, ended))
        await asyncio.sleep(0)
        caller.connect(str(short_directory / "s"))
        ended.set()
        connection = await asyncio.wait_for(waiting, 5)
        assert connection is not None
        connection.close()
        assert await accepted(listener, ended) is None
