"""What an agent's own processes say to the platform: frames of templates, lines of workers."""

import asyncio
import json
import os
import socket
import threading
from types import SimpleNamespace
from typing import Any

from agentruntime import launch

from agent_pool.drivers.control import ControlChannel, ControlClosed
from agent_pool.drivers.reports import MOST_BYTES, Reports
from agent_pool.drivers.templates import Templates
from agent_worker.template import _checked
from tests.fuzz.target import Target, is_said

_PATIENCE_S = 4.0


def _fill(ours: socket.socket, data: bytes) -> threading.Thread:
    """Says everything and hangs up, from a thread, since a socket takes only so much at once."""

    def say() -> None:
        with ours:
            try:
                ours.sendall(data)
            except OSError:
                return  # the other side has heard enough

    thread = threading.Thread(target=say)
    thread.start()
    return thread


def frames(data: bytes) -> None:
    """Frames, read as a base and a container's entrypoint read them: messages, an end, or ValueError, in time."""
    ours, theirs = socket.socketpair()
    saying = _fill(ours, data)
    heard = 0
    with theirs:
        try:
            while received := launch.receive(theirs, timeout_s=_PATIENCE_S):
                message, descriptors = received
                assert isinstance(message, dict)
                assert descriptors == []
                heard += 1
        except ValueError as error:
            is_said(str(error))
    saying.join()
    assert heard <= len(data) // 4


def spec(data: bytes) -> None:
    """A message that tells a process what to become: a spec, or one of the errors that are caught."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return
    for read in (launch.template_spec, launch.worker_spec):
        try:
            read(message)
        except (KeyError, TypeError, ValueError) as error:
            is_said(str(error))


def control(data: bytes) -> None:
    """What a template says to the pool: answers and ends of workers; anything else closes its channel alone."""
    asyncio.run(_control(data))


async def _control(data: bytes) -> None:
    loop = asyncio.get_running_loop()
    unhandled: list[Any] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    ended: dict[int, asyncio.Future[int]] = {}

    def exit_status(_key: str, pid: int) -> asyncio.Future[int]:
        return ended.setdefault(pid, loop.create_future())

    templates: Any = SimpleNamespace(exit_status=exit_status)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    channel = ControlChannel(theirs, lambda message: Templates._on_event(templates, "my-agent@1", message))
    asking = asyncio.create_task(channel.request({"op": "fork"}))
    saying = _fill(ours, data)
    try:
        answer = await asyncio.wait_for(asking, _PATIENCE_S)
        assert answer["id"] == 1
    except ControlClosed:
        pass
    await asyncio.wait_for(channel.closed.wait(), _PATIENCE_S)
    saying.join()
    for pid, status in ended.items():
        assert isinstance(pid, int)
        if status.done():
            os.waitstatus_to_exitcode(status.result())
    assert unhandled == []


def answer_to_load(data: bytes) -> None:
    """What an image template says of its import, which its base passes on to the pool: each field of its type."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(message, dict):
        return
    answer = _checked(message)
    assert isinstance(answer["ok"], bool)
    assert all(isinstance(each, str) for each in answer["services"])
    assert all(
        isinstance(answer[name], str) for name in ("error", "traceback", "note", "descriptors", "unenforceable")
    )
    assert len(launch.encode(answer)) <= launch.LONGEST_MESSAGE


def reports(data: bytes) -> None:
    """What a worker says before it serves: heard a piece at a time, and no more than it has to say."""
    ours, theirs = socket.socketpair()
    saying = _fill(ours, data)
    heard = Reports(theirs)
    try:
        while not heard.hung_up and not heard.too_much:
            heard.hear()
        assert heard._total_bytes <= MOST_BYTES + 2**16
        assert all(isinstance(value, str) for value in heard.failure.values())
    finally:
        heard.close()
        saying.join()


_FRAME = (b"\x00\x00\x00\x02{}", b'"event":"exit"', b'"pid":', b'"status":', b'"id":1', b"\xff\xff\xff\xff", b"[[[[")
TARGETS = [
    Target("frames", frames, _FRAME),
    Target("control", control, _FRAME),
    Target("spec", spec, (b'"sandbox":{}', b'"worker_id":', b'"slot":', b'"env":')),
    Target("answer-to-load", answer_to_load, (b'"ok":true', b'"services":[', b'"descriptors":"', b"\\ud800")),
    Target("reports", reports, (b'{"event":"listening"}\n', b'{"event":"failed"', b"\n")),
]
