"""Lines arrive at an aggregator: all of them, few twice, whatever becomes of the aggregator and the pool."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent_pool.logs import LogPolicy, LogStore, shipping
from agent_pool.logs.sent import Sent
from agent_pool.logs.shipping import Patience, Shipping
from agent_pool.restart import Backoff
from tests.agent_pool.logs.receiver import Receiver
from tests.waiting import eventually

PATIENCE = Patience(ack_timeout_s=20.0, backoff=Backoff(first_delay_s=0.01, longest_delay_s=0.05))


class Node:
    """A log store, and what is said of its agents."""

    def __init__(self, root: Path) -> None:
        self.policy = LogPolicy()
        self.logs = LogStore(root, lambda _: self.policy)
        self.notes: dict[str, str] = {}
        self.patience = PATIENCE
        self._sent = root / "sent"

    @asynccontextmanager
    async def pool(self) -> AsyncIterator[None]:
        task = asyncio.create_task(Shipping(self.logs, self._sent, self.notes.__setitem__, self.patience).run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

    def write(self, worker_id: str, *texts: str) -> None:
        descriptor = self.logs.open("a", worker_id)
        os.write(descriptor, "".join(f"{text}\n" for text in texts).encode())
        os.close(descriptor)


async def test_all_lines_of_all_workers_over_two_pools(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with Receiver() as receiver:
        node.policy = LogPolicy(aggregator=receiver.aggregator)
        node.write("a-01", '{"event": "one", "level": "error", "time": "1970-01-01T00:00:05Z", "n": 1}', "bare", "")
        async with node.pool():
            await eventually(lambda: len(receiver.records) == 2)
            node.write("a-02", "two")
            await eventually(lambda: len(receiver.records) == 3)
        node.write("a-01", "three")
        async with node.pool():
            await eventually(lambda: len(receiver.records) == 4)
    assert receiver.tags == {"agent.a"}
    assert receiver.events == ["one", "bare", "two", "three"]
    worker = {"worker_id": "a-01", "agent": "a", "at_s": 5, "time": "1970-01-01T00:00:05Z"}
    assert receiver.records[0] == {**worker, "event": "one", "level": "error", "n": 1}
    assert receiver.records[1] == {**worker, "event": "bare", "level": "info"}


async def test_an_aggregator_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with Receiver() as receiver:
        node.policy = LogPolicy(aggregator=receiver.aggregator)
        node.write("a-01", "one")
        async with node.pool():
            await eventually(lambda: receiver.events == ["one"])
            await receiver.stop()
            node.write("a-01", *(f"line {n}" for n in range(50_000)))
            await eventually(lambda: "do not reach" in node.notes.get("a", ""))
            await receiver.start()
            await eventually(lambda: len(receiver.records) > 50_000, timeout_s=30)
            await eventually(lambda: node.notes["a"] == "")
    assert receiver.events == ["one", *(f"line {n}" for n in range(50_000))]


async def test_it_outlives_a_policy_that_cannot_be_had(tmp_path: Path) -> None:
    node = Node(tmp_path)
    asked = []

    def policy(_: str) -> LogPolicy:
        asked.append(1)
        if len(asked) == 1:
            raise RuntimeError("dictionary changed size during iteration")
        return node.policy

    node.logs.policy = policy
    node.write("a-01", "one")
    async with Receiver() as receiver:
        node.policy = LogPolicy(aggregator=receiver.aggregator)
        async with node.pool():
            await eventually(lambda: receiver.events == ["one"])


async def test_one_that_never_acknowledges_has_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with Receiver() as receiver:
        receiver.acknowledges = False
        node.patience = replace(PATIENCE, ack_timeout_s=0.1)
        node.policy = LogPolicy(aggregator=receiver.aggregator)
        node.write("a-01", "one")
        async with node.pool():
            await eventually(lambda: len(receiver.unacknowledged) > 2)
            assert "does not answer" in node.notes["a"]
        receiver.acknowledges = True
        node.patience = PATIENCE
        async with node.pool():
            await eventually(lambda: receiver.events == ["one"])
            await eventually(lambda: node.notes["a"] == "")


@pytest.mark.parametrize("aggregator", ["fluentd://127.0.0.1:99999", f"fluentd://{'x' * 70}.example:1"])
async def test_an_address_that_cannot_be_is_noted(tmp_path: Path, aggregator: str) -> None:
    node = Node(tmp_path)
    node.policy = LogPolicy(aggregator=aggregator)
    node.write("a-01", "one")
    async with node.pool():
        await eventually(lambda: "do not reach" in node.notes.get("a", ""))


async def test_another_aggregator_goes_on_where_the_first_was(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with Receiver() as first, Receiver() as second, node.pool():
        node.policy = LogPolicy(aggregator=first.aggregator)
        node.write("a-01", "one")
        await eventually(lambda: first.events == ["one"])
        node.policy = LogPolicy(aggregator=second.aggregator)
        await eventually(lambda: not first._writers)
        node.write("a-01", "two")
        await eventually(lambda: second.events == ["two"])
        node.policy = LogPolicy()
        await eventually(lambda: not second._writers)
    assert first.events == ["one"]


async def test_what_comes_after_many_empty_lines_arrives(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.write("a-01", "\n" * 2**20, "one")
    async with Receiver() as receiver:
        node.policy = LogPolicy(aggregator=receiver.aggregator)
        async with node.pool():
            await eventually(lambda: receiver.events == ["one"])


async def test_one_loud_worker_does_not_keep_the_others_waiting(tmp_path: Path) -> None:
    node = Node(tmp_path)
    for _ in range(8):
        node.write("a-01", *("x" * 99 for _ in range(10_000)))
    node.write("a-02", "quiet")
    async with Receiver() as receiver:
        node.policy = LogPolicy(aggregator=receiver.aggregator)
        async with node.pool():
            await eventually(lambda: "quiet" in receiver.events)
            assert len(receiver.records) < 80_000
            await eventually(lambda: len(receiver.records) == 80_001, timeout_s=30)


async def test_what_was_trimmed_before_it_was_sent_is_passed_over(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with Receiver() as receiver:
        node.policy = LogPolicy(aggregator=receiver.aggregator, max_bytes=100_000)
        node.write("a-01", "first")
        async with node.pool():
            await eventually(lambda: receiver.events == ["first"])
        node.write("a-01", *(f"line {n}" for n in range(30_000)))
        node.logs.maintain(0.0)
        async with node.pool():
            await eventually(lambda: receiver.events[-1] == "line 29999")
    kept = receiver.events[1:]
    assert kept == [f"line {n}" for n in range(30_000 - len(kept), 30_000)]
    assert len(kept) < 10_000


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)"), "Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (TimeoutError("it does not answer"), "it does not answer"),
        (OverflowError("getsockaddrarg: port must be 0-65535."), "getsockaddrarg: port must be 0-65535."),
    ],
)
def test_reasons(error: Exception, says: str) -> None:
    assert shipping._reason(error) == says


def test_a_chunk_is_bounded(tmp_path: Path) -> None:
    node = Node(tmp_path)
    for n in range(30):
        node.write(f"a-{n:02}", "x" * 2**18)
    sender = shipping.Sender(node.logs, "a", "", Sent(tmp_path / "sent" / "a.json"))
    chunk = sender._chunk()
    assert sum(len(record["event"]) for _, record in chunk.entries) < 2 * 2**20
    assert len(chunk.places) == len(chunk.entries) < 8
