"""A worker that converses and a log, both in memory: what the gateway's doors to conversations are tested against.

The worker breaks where a test says so; what it has written is on the log, and what it has not finished by then is
finished there as if another worker had taken it up.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import text_generation_pb2 as text
from agentruntime.interceptors import ServerInterceptor
from grpc import aio

from uapi_gateway.access.policy import Policy
from uapi_gateway.conversations import plain
from uapi_gateway.conversations.sending import SERVICE, Sender
from uapi_gateway.conversations.store import Course, Courses, Key, Page
from uapi_gateway.registry import Agent, Demands, Registry

PIECES = ("You ", "said ", "it")
# Where a worker breaks: the names say after what.
PLACES = ("nothing", "logged", "told message", "told attempt", "told chunk", "completed")


def content_of(request: Any) -> list[proto.Event]:
    """All events of a message."""
    message_id = request.message_id
    return [
        proto.Event(message_id=message_id, message=request.message),
        proto.Event(message_id=message_id, attempt=proto.Attempt(number=1, worker_id="w-01")),
        *(proto.Event(message_id=message_id, chunk=proto.Part(text=piece)) for piece in PIECES),
        proto.Event(
            message_id=message_id,
            completion=proto.ChatMessage(
                role="assistant",
                parts=[proto.Part(text="".join(PIECES))],
                metadata={"prompt_tokens": "3", "completion_tokens": "5"},
            ),
        ),
    ]


class MemoryLog:
    """What the gateway's doors need of an event log."""

    def __init__(self) -> None:
        self.events: dict[Key, list[proto.Event]] = {}
        self.news = asyncio.Condition()
        self.cancelled: list[tuple[Key, str]] = []
        # Raised once each by what is called next.
        self.failures: list[errors.AgentError] = []

    def _check(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    async def append(self, key: Key, *events: proto.Event) -> None:
        written = self.events.setdefault(key, [])
        for event in events:
            event.sequence = len(written) + 1
            event.time.FromSeconds(1_700_000_000)
            written.append(event)
        async with self.news:
            self.news.notify_all()

    async def find(self, key: Key, message_id: str = "") -> proto.Conversation:
        self._check()
        if key not in self.events:
            raise errors.ConversationNotFound(key.conversation_id)
        events = self.events[key]
        infos = [self._info(events, each) for each in dict.fromkeys(event.message_id for event in events)]
        shown = [
            info
            for info in infos
            if (info.message_id == message_id if message_id else info.status <= proto.MESSAGE_STATUS_RUNNING)
        ]
        return proto.Conversation(
            conversation_id=key.conversation_id,
            agent=key.agent,
            principal=key.principal,
            first_sequence=1,
            last_sequence=len(events),
            messages=shown,
        )

    @staticmethod
    def _info(events: list[proto.Event], message_id: str) -> proto.MessageInfo:
        own = [event for event in events if event.message_id == message_id]
        last = own[-1].WhichOneof("content") or ""
        ends = {"completion": proto.MESSAGE_STATUS_COMPLETED, "failure": proto.MESSAGE_STATUS_FAILED}
        return proto.MessageInfo(
            message_id=message_id,
            status=ends.get(last, proto.MESSAGE_STATUS_RUNNING),
            attempts=1,
            first_sequence=own[0].sequence,
            last_sequence=own[-1].sequence if last in ends else 0,
        )

    async def watch(
        self, key: Key, after: int = 0, *, message_id: str = "", follow: bool = False
    ) -> AsyncIterator[proto.Event]:
        self._check()
        if key not in self.events:
            raise errors.ConversationNotFound(key.conversation_id)
        while True:
            for event in self.events[key][after:]:
                after = event.sequence
                if not message_id or event.message_id == message_id:
                    yield event
                    if message_id and event.WhichOneof("content") in ("completion", "failure"):
                        return
            found = (await self.find(key, message_id)).messages
            ended = any(0 < info.last_sequence <= after for info in found)
            if not follow or (message_id and ended):
                return
            if message_id and not found:
                raise errors.MessageNotFound(f"no message '{message_id}'")
            async with self.news:
                if len(self.events[key]) == after:
                    await self.news.wait()

    async def read(
        self, key: Key, after: int = 0, limit: int = 0, *, message_id: str = "", backwards: bool = False
    ) -> tuple[Sequence[proto.Event], bool]:
        await self.find(key)
        found = [e for e in self.events[key][after:] if not message_id or e.message_id == message_id]
        return found[:limit], len(found) > limit

    async def messages(
        self, key: Key, before: int, limit: int, *, statuses: "Sequence[proto.MessageStatus.ValueType]" = ()
    ) -> Courses:
        self._check()
        if key not in self.events:
            raise errors.ConversationNotFound(key.conversation_id)
        events = self.events[key]
        infos = [self._info(events, each) for each in dict.fromkeys(event.message_id for event in reversed(events))]
        found = [
            Course(
                info, events[info.first_sequence - 1], events[info.last_sequence - 1] if info.last_sequence else None
            )
            for info in sorted(infos, key=lambda info: -info.first_sequence)
            if (not before or info.first_sequence < before) and (not statuses or info.status in statuses)
        ]
        return Courses(tuple(found[:limit]), len(found))

    async def list(self, principal: str | None, agent: str, page_size: int = 0, page_token: str = "") -> Page:
        found = [await self.find(key) for key in self.events if (key.principal, key.agent) == (principal, agent)]
        return Page(tuple(found[:page_size]), "")

    async def cancel(self, key: Key, message_id: str = "") -> "proto.MessageStatus.ValueType":
        await self.find(key)
        self.cancelled.append((key, message_id))
        return proto.MESSAGE_STATUS_CANCELLED

    async def delete(self, key: Key) -> None:
        await self.find(key)
        del self.events[key]


@dataclass
class Worker:
    """Answers every message with `PIECES`."""

    log: MemoryLog
    # Where calls break, in their order; calls after those do not.
    breaks: list[str] = field(default_factory=list)
    # Raised by each call instead.
    refuses: errors.AgentError | None = None
    # Waited for before the second piece.
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[dict[str, Any]] = field(default_factory=list)
    # Calls that are over, however they ended.
    ended: int = 0
    _tasks: "set[asyncio.Task[None]]" = field(default_factory=set)

    def __post_init__(self) -> None:
        self.gate.set()

    async def settle(self) -> None:
        """Finishes what runs, and begins anew."""
        self.gate.set()
        await asyncio.gather(*self._tasks)
        self.calls.clear()
        self.breaks, self.refuses, self.ended = [], None, 0

    async def StreamMessage(
        self, request: proto.StreamMessageRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[proto.StreamMessageResponse]:
        done: Any = self.over
        context.add_done_callback(done)
        self.calls.append({**dict(context.invocation_metadata() or ()), "request": request})
        if self.refuses:
            raise self.refuses
        place = self.breaks.pop(0) if self.breaks else ""
        metadata = dict(context.invocation_metadata() or ())
        key = Key(
            str(metadata["x-uapi-principal"]), str(metadata["x-uapi-agent"]), str(metadata["x-uapi-conversation"])
        )
        if place == "nothing":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Connection reset by peer")
        known = key in self.log.events and (await self.log.find(key, request.message_id)).messages
        if not known:
            handling = asyncio.create_task(self._handle(key, content_of(request)))
            self._tasks.add(handling)
            handling.add_done_callback(self._tasks.discard)
            while all(event.message_id != request.message_id for event in self.log.events.get(key, ())):
                await asyncio.sleep(0)
        if place == "logged":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Connection reset by peer")
        if place == "completed":
            await asyncio.gather(*self._tasks)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Connection reset by peer")
        async for event in self.log.watch(key, message_id=request.message_id, follow=True):
            yield proto.StreamMessageResponse(conversation_id=request.conversation_id, event=event)
            if place == f"told {event.WhichOneof('content')}":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Connection reset by peer")

    def over(self, _: Any) -> None:
        """A call is."""
        self.ended += 1

    async def _handle(self, key: Key, events: list[proto.Event]) -> None:
        for event in events:
            if event.HasField("chunk") and event.chunk.text == PIECES[1]:
                await self.gate.wait()
            await self.log.append(key, event)


@dataclass
class Plain:
    """Generates its prompt, in two pieces, as far as the worker lets it."""

    worker: Worker

    async def StreamText(
        self, request: text.StreamTextRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[text.StreamTextResponse]:
        done: Any = self.worker.over
        context.add_done_callback(done)
        if self.worker.refuses:
            raise self.worker.refuses
        await self.worker.gate.wait()
        half = len(request.prompt) // 2
        for tokens, piece in enumerate((request.prompt[:half], request.prompt[half:]), 1):
            yield text.StreamTextResponse(text=piece, tokens_used=tokens)


def worker_server(worker: Worker, address: str) -> aio.Server:
    """A server with both, not started."""
    server = aio.server(interceptors=[ServerInterceptor()])
    server.add_generic_rpc_handlers(
        [
            _handler(SERVICE, "StreamMessage", worker.StreamMessage, proto.StreamMessageRequest),
            _handler(plain.SERVICE, "StreamText", Plain(worker).StreamText, text.StreamTextRequest),
        ]
    )
    server.add_insecure_port(address)
    return server


def _handler(service: str, method: str, behaviour: Any, request: Any) -> grpc.GenericRpcHandler:
    handler: Any = grpc.unary_stream_rpc_method_handler(
        behaviour, request_deserializer=request.FromString, response_serializer=lambda said: said.SerializeToString()
    )
    return grpc.method_handlers_generic_handler(service, {method: handler})


@dataclass
class Standing:
    """A sender with what is around it."""

    sender: Sender
    worker: Worker
    log: MemoryLog
    registry: Registry
    policy: Policy


@contextlib.asynccontextmanager
async def standing(directory: Path) -> AsyncIterator[Standing]:
    """Agents helper, which converses and takes the key `app` only; plain, which generates; and other."""
    address = f"unix:{directory}/w.sock"
    registry, log = Registry(), MemoryLog()
    for name, service in (("helper", SERVICE), ("plain", plain.SERVICE), ("other", "p.S")):
        registry.put_pool_agent(Agent(name, (service,), ()))
    worker = Worker(log)
    server = worker_server(worker, address)
    await server.start()
    channel = aio.insecure_channel(address)
    policy = Policy(demands={"helper": Demands(keys=("app",))})
    try:
        yield Standing(Sender(registry, lambda: policy, log, channel), worker, log, registry, policy)
    finally:
        await channel.close()
        await server.stop(None)
