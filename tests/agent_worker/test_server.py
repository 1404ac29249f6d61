"""A worker's server: what goes over its wire beside the agent's own answers."""

import asyncio
import contextlib
import select
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentruntime._proto.uapi.v1 import text_generation_pb2 as pb
from agentruntime._proto.uapi.v1 import text_generation_pb2_grpc
from agentruntime.agent import Agent
from agentruntime.launch import LAG_KEY, WorkerSpec
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent_worker.lag import LagSelector
from agent_worker.loader import LoadedAgent
from agent_worker.server import WorkerServer


class Repeater(Agent):
    async def generate(self, prompt: str, *, temperature: float, max_tokens: int) -> AsyncIterator[str]:
        for _ in range(max_tokens or 1):
            yield prompt


@asynccontextmanager
async def serving(lag: LagSelector | None = None, **settings: Any) -> AsyncIterator[str]:
    server = WorkerServer(WorkerSpec("a-01", "a", 1, 1, **settings), lag or LagSelector())
    with tempfile.TemporaryDirectory(prefix="uapi-srv-") as directory:
        path = Path(directory, "s")
        await server.start(LoadedAgent(Repeater, (), (), b""), f"unix:{path}", "a-01")
        try:
            yield f"unix:{path}"
        finally:
            await server._server.stop(0)
            server._threads.shutdown()


async def received_bytes(address: str, text: str, *options: tuple[str, int]) -> int:
    """What one answer takes on the wire, counted by a proxy that knows nothing of gRPC."""
    with tempfile.TemporaryDirectory(prefix="uapi-wire-") as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/s")
        listener.listen()
        counting = asyncio.create_task(asyncio.to_thread(count, listener, address.removeprefix("unix:")))
        async with aio.insecure_channel(f"unix:{directory}/s", options) as channel:
            stub: Any = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
            answer = await stub.GenerateText(pb.GenerateTextRequest(prompt=text), timeout=10)
            assert answer.text == text
        return await counting


def count(listener: socket.socket, path: str) -> int:
    """Carries one connection until its caller hangs up; how many bytes came back to it."""
    total = 0
    caller, _ = listener.accept()
    with caller, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(ConnectionError):
        server.connect(path)
        while True:
            for end in select.select([caller, server], [], [])[0]:
                piece = end.recv(65536)
                if not piece:
                    return total
                total += len(piece) if end is server else 0
                (caller if end is server else server).sendall(piece)
    return total


# https://grpc.github.io/grpc/core/group__grpc__arg__keys.html: the algorithms that a caller accepts, as bits
ONLY_IDENTITY = ("grpc.compression_enabled_algorithms_bitset", 1)


@pytest.mark.parametrize(
    ("compression", "options", "small"), [("gzip", (), True), ("gzip", (ONLY_IDENTITY,), False), ("none", (), False)]
)
async def test_answers_are_compressed_for_callers_that_accept_it(
    compression: str, options: tuple[tuple[str, int], ...], small: bool
) -> None:
    text = "all work and no play " * 5000
    async with serving(compression=compression) as address:
        size = await received_bytes(address, text, *options)
    assert (size < len(text) / 10) is small


async def test_gathered_pieces_are_the_text() -> None:
    for optimize in (False, True):
        async with serving(optimize_throughput=optimize) as address, aio.insecure_channel(address) as channel:
            stub: Any = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
            call = stub.StreamText(pb.StreamTextRequest(prompt="ab", max_tokens=200), timeout=10)
            pieces = [piece async for piece in call]
        assert "".join(piece.text for piece in pieces) == "ab" * 200
        assert (pieces[-1].tokens_used, pieces[-1].confidence) == (200, 1.0)
        assert (len(pieces) < 20) is optimize


async def test_health_says_for_how_long_the_loop_was_blocked() -> None:
    lag = LagSelector()

    async def main() -> list[int]:
        async with serving(lag) as address, aio.insecure_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)

            async def ask() -> int:
                call = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
                assert (await call).status == health_pb2.HealthCheckResponse.SERVING
                trailers: Any = await call.trailing_metadata()
                return int(dict(trailers)[LAG_KEY])

            await ask()
            time.sleep(0.3)
            await asyncio.sleep(0)
            return [await ask(), await ask()]

    def run() -> list[int]:
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(lag)) as runner:
            return runner.run(main())

    # In a thread: grpc.aio belongs to one event loop in each.
    blocked, after = await asyncio.to_thread(run)
    assert blocked >= 300
    assert after < 300


async def test_an_agent_without_conversations_says_so() -> None:
    async with serving() as address, aio.insecure_channel(address) as channel:
        for method in ("SendMessage", "StreamMessage"):
            call: Any = channel.unary_unary(f"/uapi.v1.ConversationService/{method}")
            with pytest.raises(aio.AioRpcError, match="no on_message") as refused:
                await call(b"", timeout=10)
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
