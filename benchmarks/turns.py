"""turns: what a turn of a conversation costs: message and reply, each on disk before the next step."""

import asyncio
import math
import os
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import conversation_service_pb2_grpc
from grpc import aio

from benchmarks.platform import Platform, cpu_seconds, platform
from benchmarks.table import Table

TALKER = Path(__file__).with_name("talker")
_WORKERS = 2
_AT_ONCE = (1, 16, 256)
_TURNS = {1: 300, 16: 2000, 256: 8000}
_WARM_UP = 512
_ROUNDS = 3
# Of one conversation: a turn has three events, message, attempt and completion.
_GROWN_EVENTS, _EVENTS_A_TURN = 10_000, 3
_MEASURED_TURNS = 200
_TIMEOUT_S = 60
_MICRO, _MILLI = 1e6, 1e3


@dataclass(frozen=True)
class Talk:
    """A platform with an agent that talks, and a caller's channel to it."""

    running: Platform
    # The generated stub's asynchronous form exists for type checkers only, hence the name in quotes.
    stub: "conversation_service_pb2_grpc.ConversationServiceAsyncStub"
    workers: tuple[int, ...]

    async def turn(self, conversation_id: str) -> float:
        """One message and its reply, which is checked; returns its seconds."""
        text = f"{conversation_id} says something"
        request = proto.SendMessageRequest(
            conversation_id=conversation_id,
            message_id=uuid.uuid4().hex,
            message=proto.ChatMessage(parts=[proto.Part(text=text)]),
        )
        began = time.perf_counter()
        answer = await self.stub.SendMessage(request, metadata=metadata(conversation_id), timeout=_TIMEOUT_S)
        elapsed_s = time.perf_counter() - began
        if [part.text for part in answer.reply.parts] != [text]:
            raise SystemExit(f"a wrong reply: {answer.reply}")
        return elapsed_s

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far, by process."""
        used = {name: self.running.cpu_seconds(name) for name in ("envoy", "gateway")}
        used["workers"] = sum(cpu_seconds(pid) for pid in self.workers)
        used["load"] = cpu_seconds(os.getpid())
        return used


def metadata(conversation_id: str) -> tuple[tuple[str, str], ...]:
    """Of a call to the talker."""
    return (("x-uapi-agent", "talker"), ("x-uapi-conversation", conversation_id))


@asynccontextmanager
async def talking(
    workers: int = _WORKERS, prepare: Callable[[Platform], object] | None = None
) -> AsyncIterator[Talk]:
    """A platform that runs the talker."""
    async with platform() as running:
        if prepare:
            await asyncio.to_thread(prepare, running)
        await asyncio.to_thread(running.agent, "build", str(TALKER))
        deployment = await running.run("talker:1.0.0", workers)
        async with aio.insecure_channel(running.address) as channel:
            stub = conversation_service_pb2_grpc.ConversationServiceStub(channel)
            yield Talk(running, stub, tuple(worker.pid for worker in deployment.workers))


async def measure() -> Table:
    table = Table(
        "turns",
        f"SendMessage to an agent of {_WORKERS} workers that echoes, by a Python client over one connection on the "
        f"same {len(os.sched_getaffinity(0))} cores: message and reply are on disk (SQLite, synchronous=FULL) "
        f"before it is answered. Best of {_ROUNDS} rounds, every reply checked.",
    )
    async with talking() as talk:
        await _round(talk, 64, _WARM_UP)
        for at_once in _AT_ONCE:
            await _throughput(table, talk, at_once)
        await _grown(table, talk)
    return table


async def _throughput(table: Table, talk: Talk, at_once: int) -> None:
    turns = _TURNS[at_once]
    best_s, best_latencies, best_cpu = math.inf, [0.0], dict[str, float]()
    for _ in range(_ROUNDS):
        before = talk.cpu()
        began = time.perf_counter()
        latencies = await _round(talk, at_once, turns)
        elapsed_s = time.perf_counter() - began
        if elapsed_s < best_s:
            after = talk.cpu()
            best_s, best_latencies = elapsed_s, latencies
            best_cpu = {name: after[name] - before[name] for name in before}
    # The bar is a thousand a second.
    bar = 1e-3 * _MICRO if at_once == max(_AT_ONCE) else None
    table.add(f"{at_once} at once: wall of a turn ({turns / best_s:,.0f}/s)", best_s / turns * _MICRO, "µs", bar)
    percentiles = statistics.quantiles(best_latencies, n=100)
    table.add(f"{at_once} at once: latency p50", percentiles[49] * _MILLI, "ms")
    table.add(f"{at_once} at once: latency p99", percentiles[98] * _MILLI, "ms")
    for name, seconds in best_cpu.items():
        table.add(f"{at_once} at once: {name}, a turn", seconds / turns * _MICRO, "µs CPU")


async def _round(talk: Talk, at_once: int, turns: int) -> list[float]:
    """So many turns, in so many conversations that go on beside each other; returns the seconds of each."""
    latencies: list[float] = []
    run = uuid.uuid4().hex[:8]

    async def converse(number: int) -> None:
        for _ in range(turns // at_once):
            latencies.append(await talk.turn(f"{run}-{number}"))

    async with asyncio.TaskGroup() as all_of_them:
        for number in range(at_once):
            all_of_them.create_task(converse(number))
    return latencies


async def _grown(table: Table, talk: Talk) -> None:
    """Of one conversation, young and long."""
    conversation_id = uuid.uuid4().hex
    young = await _costs(talk, conversation_id)
    while (await _length(talk, conversation_id)) < _GROWN_EVENTS:
        for _ in range(_GROWN_EVENTS // _EVENTS_A_TURN // 10):
            await talk.turn(conversation_id)
    old = await _costs(talk, conversation_id)
    for what, unit, scale in (("CPU", "µs", _MICRO), ("latency p50", "ms", _MILLI)):
        table.add(f"a turn after {_GROWN_EVENTS:,} events, {what}", old[what] * scale, unit)
        table.add(f"beside one of a young conversation, {what}", old[what] / young[what], "×", 1.25)


async def _costs(talk: Talk, conversation_id: str) -> dict[str, float]:
    before = talk.cpu()
    latencies = [await talk.turn(conversation_id) for _ in range(_MEASURED_TURNS)]
    after = talk.cpu()
    used = sum(after[name] - before[name] for name in ("envoy", "gateway", "workers"))
    return {"CPU": used / _MEASURED_TURNS, "latency p50": statistics.median(latencies)}


async def _length(talk: Talk, conversation_id: str) -> int:
    request = proto.GetConversationRequest(conversation_id=conversation_id)
    found = await talk.stub.GetConversation(request, metadata=metadata(conversation_id), timeout=_TIMEOUT_S)
    return found.conversation.last_sequence
