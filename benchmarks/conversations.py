"""conversations: a hundred thousand of them that are idle, and how soon the first word of a reply is there."""

import asyncio
import json
import statistics
import time
import uuid

import psutil
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.home import Home

from benchmarks.platform import Platform
from benchmarks.table import Table
from benchmarks.turns import Talk, metadata, talking
from uapi_gateway.conversations.sql import SqlStore
from uapi_gateway.conversations.store import Append, Key

_IDLE = 100_000
_BATCH = 1_000
_TOUCHED = 200
_STREAMED = 60
_WORDS = "one two three four"
_MILLI, _MEGA = 1e3, 1e6
_TIMEOUT_S = 60


async def measure() -> Table:
    table = Table(
        "conversations",
        f"{_IDLE:,} conversations of one agent, each with a message and its reply, that nobody has touched since; "
        f"then {_TOUCHED} of them get a message. And: from the request to the first word of a streamed reply, over "
        f"gRPC and over HTTP as server-sent events, {_STREAMED} interleaved pairs.",
    )
    async with talking(1) as talk:
        none = await _touch(talk, [uuid.uuid4().hex for _ in range(_TOUCHED)])
        table.add("memory of gateway and worker before (PSS)", _pss(talk) / _MEGA, "MB")
    async with talking(1, prepare=_restarted_with_idle) as talk:
        table.add(f"the same with {_IDLE:,} idle conversations", _pss(talk) / _MEGA, "MB")
        before = _pss(talk)
        touched = await _touch(talk, [_name(number * (_IDLE // _TOUCHED)) for number in range(_TOUCHED)])
        table.add("memory of one that is touched", (_pss(talk) - before) / _TOUCHED / 1e3, "KB")
        table.add("a new conversation's first turn, p50, with none beside", none * _MILLI, "ms")
        table.add("a turn of one that was idle, p50", touched * _MILLI, "ms")
        await _first_words(table, talk)
    return table


def _name(number: int) -> str:
    return f"idle-{number}"


def _restarted_with_idle(running: Platform) -> None:
    """Puts the conversations where a gateway that is started finds them."""
    running.agent("down")
    asyncio.run(_fill(running.home))
    port = running.address.rpartition(":")[2]
    running.agent("up", "--grpc-port", port, "--http-port", "0", "--anonymous", "call")
    status = running.agent("status")
    running.pids.update({process["name"]: int(process["pid"]) for process in status["processes"]})


async def _fill(home: Home) -> None:
    store = SqlStore(f"sqlite:///{home.state}/conversations.db", home.state / "blobs")
    await store.open()
    said = proto.ChatMessage(parts=[proto.Part(text="something that was said")])
    for start in range(0, _IDLE, _BATCH):
        batch = []
        for number in range(start, start + _BATCH):
            key = Key("anonymous", "talker", _name(number))
            lease = await store.acquire(key, "bench", time.time_ns())
            events = (
                proto.Event(message_id="1", message=said),
                proto.Event(message_id="1", attempt=proto.Attempt(number=1, worker_id="talker-01")),
                proto.Event(message_id="1", completion=said),
            )
            batch.append(Append(key, lease.token, events))
        await store.append(batch, time.time_ns())
    await store.close()


async def _touch(talk: Talk, conversations: list[str]) -> float:
    """A turn in each of them; the median of their seconds."""
    return statistics.median([await talk.turn(each) for each in conversations])


def _pss(talk: Talk) -> int:
    pids = (talk.running.pids["gateway"], *talk.workers)
    return sum(psutil.Process(pid).memory_full_info().pss for pid in pids)


async def _first_words(table: Table, talk: Talk) -> None:
    grpc_s, sse_s = [], []
    host, port = json.loads((talk.running.home.run / "gateway.json").read_text())["http_address"].rsplit(":", 1)
    for number in range(_STREAMED + 5):
        pair = await _first_over_grpc(talk), await _first_over_sse(host.removeprefix("http://"), int(port))
        if number >= 5:  # warm
            grpc_s.append(pair[0])
            sse_s.append(pair[1])
    table.add("first word over gRPC, p50", statistics.median(grpc_s) * _MILLI, "ms")
    table.add("first word over server-sent events, p50", statistics.median(sse_s) * _MILLI, "ms")


async def _first_over_grpc(talk: Talk) -> float:
    conversation_id = uuid.uuid4().hex
    request = proto.StreamMessageRequest(
        conversation_id=conversation_id, message=proto.ChatMessage(parts=[proto.Part(text=f"stream {_WORDS}")])
    )
    began = time.perf_counter()
    first_s = 0.0
    async for answer in talk.stub.StreamMessage(request, metadata=metadata(conversation_id), timeout=_TIMEOUT_S):
        if answer.event.HasField("chunk") and not first_s:
            first_s = time.perf_counter() - began
    return first_s


async def _first_over_sse(host: str, port: int) -> float:
    body = {"messages": [{"role": "user", "content": f"stream {_WORDS}"}], "stream": True}
    body["conversation_id"] = uuid.uuid4().hex
    content = json.dumps(body).encode()
    # A connection of its own, made beforehand: the other one has a channel, too.
    reader, writer = await asyncio.open_connection(host, port)
    try:
        began = time.perf_counter()
        head = f"POST /agents/talker/run HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        await writer.drain()
        async with asyncio.timeout(_TIMEOUT_S):
            while not (line := await reader.readline()).startswith(b"event: chunk"):
                if not line:
                    raise SystemExit("the stream ended without a word")
            return time.perf_counter() - began
    finally:
        writer.close()
