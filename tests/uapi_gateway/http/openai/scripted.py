"""Agents that do as a test says, behind the OpenAI surface, and the official client on top of it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
from agentruntime import errors
from agentruntime._proto.uapi.v1 import access_pb2 as access
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from openai import AsyncOpenAI, OpenAI
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tests.uapi_gateway.conversations.conversing import MemoryLog
from uapi_gateway.access.keys import Key as ApiKey
from uapi_gateway.access.policy import Caller, Policy
from uapi_gateway.conversations.sending import SERVICE, Sender
from uapi_gateway.conversations.store import Key
from uapi_gateway.http.openai.app import routes
from uapi_gateway.http.openai.surface import Surface
from uapi_gateway.registry import Agent, Endpoint, Registry

Script = Callable[[proto.StreamMessageRequest], list[proto.Event | asyncio.Event | errors.AgentError]]


def attempt(number: int = 1) -> proto.Event:
    return proto.Event(attempt=proto.Attempt(number=number, worker_id="helper-01"))


def piece(text: str) -> proto.Event:
    return proto.Event(chunk=proto.Part(text=text))


def done(*parts: str | proto.Part, **metadata: str) -> proto.Event:
    said = [part if isinstance(part, proto.Part) else proto.Part(text=part) for part in parts]
    return proto.Event(completion=proto.ChatMessage(role="assistant", parts=said, metadata=metadata))


def failed(code: int, reason: str, message: str) -> proto.Event:
    return proto.Event(failure=proto.Failure(code=code, reason=reason, message=message))


def echo(request: proto.StreamMessageRequest) -> list[proto.Event | asyncio.Event | errors.AgentError]:
    text = "".join(part.text for part in request.message.parts)
    return [attempt(), piece("You said "), piece(text), done(f"You said {text}")]


class Scripted(Sender):
    """Writes on the log what a script says, and sends it on."""

    def __init__(self, registry: Registry, policy: Callable[[], Policy], log: MemoryLog) -> None:
        super().__init__(registry, policy, log, None)  # type: ignore[arg-type] # nothing goes through
        self.log = log
        self.script: Script = echo
        self.requests: list[proto.StreamMessageRequest] = []
        self.callers: list[Caller] = []
        self.running: set[asyncio.Task[None]] = set()

    async def stream(
        self,
        caller: Caller,
        agent: str,
        request: proto.StreamMessageRequest,
        *,
        timeout_s: float | None = None,
        after: int = 0,
    ) -> AsyncGenerator[proto.StreamMessageResponse, None]:
        target = self.admit(caller, agent)
        self.requests.append(request)
        self.callers.append(caller)
        key = Key(caller.principal, target.agent_id, request.conversation_id)
        script = self.script(request)
        if isinstance(script[0], errors.AgentError):
            raise script.pop(0)  # type: ignore[misc] # it is one
        known = {event.message_id for event in self.log.events.get(key, [])}
        if request.message_id not in known:
            earlier = [proto.Event(earlier=said) for said in request.earlier if not known]
            first = [*earlier, proto.Event(message=request.message)]
            for event in first:
                event.message_id = request.message_id
            await self.log.append(key, *first)
            task = asyncio.create_task(self._run(key, request.message_id, script))
            self.running.add(task)
            task.add_done_callback(self.running.discard)
        async with contextlib.aclosing(self.log.watch(key, message_id=request.message_id, follow=True)) as events:  # type: ignore[type-var] # a generator
            async for event in events:
                if not event.HasField("earlier"):
                    yield proto.StreamMessageResponse(conversation_id=request.conversation_id, event=event)

    async def _run(self, key: Key, message_id: str, script: list[Any]) -> None:
        for step in script:
            if isinstance(step, asyncio.Event):
                await step.wait()
            else:
                step.message_id = message_id
                await self.log.append(key, step)


@dataclass
class World:
    """The surface with two agents that converse, and one that does neither."""

    policy: Policy = field(default_factory=Policy)
    log: MemoryLog = field(default_factory=MemoryLog)
    registry: Registry = field(default_factory=Registry)
    headers: dict[str, str] = field(default_factory=lambda: {"x-uapi-principal": "anonymous"})

    def __post_init__(self) -> None:
        for name, service in (("helper", SERVICE), ("other", SERVICE), ("silent", "my.Service")):
            self.registry.put_pool_agent(Agent(name, (service,), (Endpoint("unix:/x", ready=True),)))
        self.sender = Scripted(self.registry, lambda: self.policy, self.log)
        self.surface = Surface(self.sender, self.log, self.registry, lambda: self.policy)
        self.app = Starlette(routes=routes(self.surface))

    @contextlib.asynccontextmanager
    async def client(self, **headers: str) -> AsyncIterator[AsyncOpenAI]:
        """The official client, with headers as Envoy sets them."""
        transport = httpx2.ASGITransport(self.app)
        async with httpx2.AsyncClient(transport=transport) as http:
            yield AsyncOpenAI(
                base_url="http://localhost/v1",
                api_key="sk-none",
                http_client=http,
                default_headers={**self.headers, **headers},
                max_retries=0,
            )

    @contextlib.contextmanager
    def blocking_client(self) -> Iterator[OpenAI]:
        with TestClient(self.app) as http:
            yield OpenAI(
                base_url="http://localhost/v1",
                api_key="sk-none",
                http_client=http,
                default_headers=self.headers,
                max_retries=0,
            )

    @property
    def last(self) -> proto.StreamMessageRequest:
        return self.sender.requests[-1]


def a_key(*agents: str) -> ApiKey:
    """One that may call those."""
    return ApiKey("k1", "ci", access.ROLE_CALL, agents, public="", created_at=0.0)
