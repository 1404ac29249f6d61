"""One connection of the forward protocol, to a receiver of the tests' own."""

import socket

import pytest

from agent_pool.logs.forward import Link
from tests.agent_pool.logs.receiver import Receiver
from tests.waiting import eventually


async def test_what_is_acknowledged_was_sent() -> None:
    async with Receiver() as receiver:
        link = Link("127.0.0.1", receiver.port, ack_timeout_s=10)
        await link.send(
            "agent.a", [(1.5, {"event": "one", "n": 1}), (2.0, {"event": "two \ud800", "deep": {"x": [1]}})]
        )
        await link.send("agent.a", [(3.0, {"event": "three", "huge": 10**30, "list": []})])
        link.close()
    assert receiver.tags == {"agent.a"}
    assert receiver.records == [
        {"event": "one", "n": 1, "at_s": 1},
        {"event": "two ?", "deep": {"x": [1]}, "at_s": 2},
        {"event": "three", "huge": str(10**30), "at_s": 3},
    ]


async def test_a_connection_is_kept_and_kept_alive() -> None:
    async with Receiver() as receiver:
        link = Link("127.0.0.1", receiver.port, ack_timeout_s=10)
        await link.send("t", [(0.0, {"event": "x"})])
        assert link._streams is not None
        first = link._streams[1]
        await link.send("t", [(0.0, {"event": "x"})])
        assert link._streams[1] is first
        assert first.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        link.close()


async def test_a_receiver_that_goes_away_and_comes_back() -> None:
    async with Receiver() as receiver:
        link = Link("127.0.0.1", receiver.port, ack_timeout_s=10)
        await link.send("t", [(0.0, {"event": "one"})])
        await receiver.stop()
        assert link._streams is not None
        await eventually(link._streams[0].at_eof)
        with pytest.raises(ConnectionRefusedError):
            await link.send("t", [(0.0, {"event": "two"})])
        await receiver.start()
        await link.send("t", [(0.0, {"event": "two"})])
        link.close()
    assert receiver.events == ["one", "two"]


async def test_one_that_never_acknowledges() -> None:
    async with Receiver() as receiver:
        receiver.acknowledges = False
        link = Link("127.0.0.1", receiver.port, ack_timeout_s=0.1)
        with pytest.raises(TimeoutError, match="does not answer"):
            await link.send("t", [(0.0, {"event": "x"})])
        assert link._streams is None
    assert receiver.events == []


@pytest.mark.parametrize(
    ("answer", "says"),
    [({"ack": "another"}, "something else"), (["HELO", {}], "credentials"), (7, "something else")],
)
async def test_one_that_answers_something_else(answer: object, says: str) -> None:
    async with Receiver() as receiver:
        receiver.answer = answer
        link = Link("127.0.0.1", receiver.port, ack_timeout_s=10)
        with pytest.raises(ConnectionError, match=says):
            await link.send("t", [(0.0, {"event": "x"})])
