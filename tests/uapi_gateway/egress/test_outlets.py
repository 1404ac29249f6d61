import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
import pytest_asyncio
from agentruntime import errors

from tests.waiting import eventually
from uapi_gateway.egress.outlets import Limits, Outlets
from uapi_gateway.kernel.peers import Peer
from uapi_gateway.registry import Agent, Permissions, Registry

PEER = Peer("a", "a-01", 1, 1879048193, 77)


class World:
    """Outlets, a server of this machine that they may reach, and a worker's listening socket."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.entry = f"localhost:{self.server.getsockname()[1]}"
        self.records: list[dict[str, Any]] = []
        self.failure: Exception | None = None
        self.registry = Registry()
        self.outlets = Outlets(self.registry, self, Limits(each=2))
        self.worker = socket.create_server(("127.0.0.1", 0))
        self.tasks: list[asyncio.Task[None]] = []
        self.permit(Permissions(egress=(self.entry,), operators_egress=(self.entry,)))

    async def record(self, **said: Any) -> None:
        if self.failure is not None:
            raise self.failure
        self.records.append(said)

    def permit(self, permissions: Permissions) -> None:
        self.registry.put_pool_agent(Agent("a", (), (), permissions=permissions))

    def hand_over(self, entry: str = "", peer: Peer = PEER) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self.tasks.append(asyncio.create_task(self._serve(theirs, peer)))
        socket.send_fds(ours, [(entry or self.entry).encode()], [self.worker.fileno()])
        return ours

    async def _serve(self, channel: socket.socket, peer: Peer) -> None:
        with channel:
            await self.outlets.serve(channel, peer)

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.create_connection(self.worker.getsockname()) as connection:
            connection.setblocking(False)
            yield connection

    async def is_reset(self) -> bool:
        with self.connected() as connection:
            try:
                async with asyncio.timeout(5):
                    return await asyncio.get_running_loop().sock_recv(connection, 1) == b""
            except ConnectionResetError:
                return True

    async def greets(self, connection: socket.socket) -> bool:
        loop = asyncio.get_running_loop()
        self.server.setblocking(False)
        outside, _ = await loop.sock_accept(self.server)
        with outside:
            await loop.sock_sendall(connection, b"hello")
            return await loop.sock_recv(outside, 10) == b"hello"

    async def greeted(self, stack: ExitStack) -> socket.socket:
        connection = stack.enter_context(self.connected())
        assert await self.greets(connection)
        return connection

    async def close(self) -> None:
        await self.outlets.close()
        await asyncio.gather(*self.tasks)
        self.server.close()
        self.worker.close()


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.close()


async def test_what_is_permitted_is_carried_and_recorded_once(world: World) -> None:
    with world.hand_over(), world.connected() as connection:
        assert await world.greets(connection)
        with suppress(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(connection, 1)
    assert world.records == [
        {
            "principal": "agent:a",
            "action": "egress",
            "target": world.entry,
            "outcome": "allowed",
            "detail": "",
            "worker_id": "a-01",
        }
    ]
    figures = world.outlets.figures()["a"]
    assert (figures.outcomes["allowed"], figures.bytes_sent) == (1, 5)
    await eventually(lambda: world.outlets.figures()["a"].open == 0)


@pytest.mark.parametrize("known", [True, False])
async def test_what_is_not_permitted_is_reset_and_recorded(world: World, known: bool) -> None:
    world.permit(Permissions())
    if not known:
        world.registry.remove_pool_agent("a")
    with world.hand_over():
        assert await world.is_reset()
    [record] = world.records
    needed = f"needs permissions.egress: [{world.entry}] in agent.yaml"
    assert (record["outcome"], record["detail"]) == ("denied", needed)
    assert world.outlets.figures()["a"].outcomes["denied"] == 1


async def test_this_machine_is_for_an_operator_to_open(world: World) -> None:
    world.permit(Permissions(egress=(world.entry,)))
    with world.hand_over():
        assert await world.is_reset()
    [record] = world.records
    assert record["outcome"] == "denied"
    assert "a loopback address; an operator may open it with --egress localhost:" in record["detail"]


async def test_a_permission_that_is_taken_away_is_gone_for_the_next_connection(world: World) -> None:
    with world.hand_over(), world.connected() as connection:
        assert await world.greets(connection)
        world.permit(Permissions())
        assert await world.is_reset()


async def test_nobody_there_is_a_reset_and_a_failure(world: World) -> None:
    world.server.close()
    with world.hand_over():
        assert await world.is_reset()
    assert [(record["outcome"], record["detail"]) for record in world.records] == [("failed", "Connection refused")]


async def test_what_cannot_be_recorded_is_not_done(world: World) -> None:
    world.failure = errors.DataLoss("no")
    with world.hand_over():
        assert await world.is_reset()


async def test_of_many_connections_some_are_recorded_and_the_rest_is_counted(world: World) -> None:
    with world.hand_over():
        for _ in range(40):
            with world.connected() as connection:
                assert await world.greets(connection)
    assert len(world.records) == 30
    assert world.outlets.figures()["a"].outcomes["allowed"] == 40


async def test_a_worker_has_no_more_connections_than_it_may(world: World) -> None:
    with ExitStack() as stack:
        stack.enter_context(world.hand_over())
        first, _ = [await world.greeted(stack) for _ in range(2)]
        third = stack.enter_context(world.connected())
        waiting = asyncio.create_task(world.greets(third))
        await asyncio.wait([waiting], timeout=0.3)
        assert not waiting.done()
        first.close()
        assert await waiting


@pytest.mark.parametrize("said", [b"no entry", b"*", b"\xff:1"])
async def test_a_worker_that_says_nonsense_is_left(world: World, said: bytes) -> None:
    with world.hand_over() as channel:
        socket.send_fds(channel, [said], [world.worker.fileno()])
        channel.settimeout(5)
        assert await asyncio.to_thread(channel.recv, 1) == b""


async def test_a_message_without_a_socket_ends_it(world: World) -> None:
    with world.hand_over() as channel:
        channel.send(world.entry.encode())
        channel.settimeout(5)
        assert await asyncio.to_thread(channel.recv, 1) == b""


async def test_a_second_channel_takes_over(world: World) -> None:
    with world.hand_over() as first, world.connected() as connection:
        assert await world.greets(connection)
        with world.hand_over(), world.connected() as other:
            first.settimeout(5)
            assert await asyncio.to_thread(first.recv, 1) == b""
            assert await world.greets(other)
            # What was there goes on.
            await asyncio.get_running_loop().sock_sendall(connection, b"x")


async def test_workers_of_the_same_name_do_not_replace_each_other(world: World) -> None:
    with world.hand_over() as first, world.hand_over(peer=Peer("a", "a-01", 2, PEER.uid + 1, 78)) as second:
        with world.connected() as connection:
            assert await world.greets(connection)
        for channel in (first, second):
            channel.setblocking(False)
            with pytest.raises(BlockingIOError):
                channel.recv(1)
