"""`AsyncClient`: `Client` for asyncio."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from grpc import aio

from agentruntime import errors
from agentruntime._proto.uapi.v1 import (
    agent_gateway_pb2_grpc,
    agent_pool_pb2_grpc,
    agent_registry_pb2_grpc,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
    image_service_pb2_grpc,
    text_generation_pb2,
    text_generation_pb2_grpc,
)
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_pb2
from agentruntime.client import dynamic, handshake, target
from agentruntime.client.connection_aio import Connection
from agentruntime.client.conversations_aio import AsyncConversation
from agentruntime.client.registration import Lease, register_request

# The standard library's: a library leaves it to its program how logs are written.
_log = logging.getLogger("agentruntime.client")
StubT = TypeVar("StubT")


class AsyncClient:
    """`Client` for asyncio: the same arguments, names and errors; belongs to one event loop."""

    def __init__(
        self,
        endpoint: str | None = None,
        token: target.TokenSource | None = None,
        timeout_s: float | None = None,
        *,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
    ) -> None:
        files = [str(path) if path else None for path in (ca, cert, key)]
        self._connection = Connection(
            target.resolve(endpoint, token, timeout_s, ca=files[0], cert=files[1], key=files[2])
        )
        self._agent = ""
        self._leases: dict[str, asyncio.Task[None]] = {}

    # The generated stubs' asynchronous forms exist for type checkers only, hence the names in quotes.
    @property
    def text_generation(self) -> "text_generation_pb2_grpc.TextGenerationServiceAsyncStub":
        return self.stub(text_generation_pb2_grpc.TextGenerationServiceStub)

    @property
    def registry(self) -> "agent_registry_pb2_grpc.AgentRegistryAsyncStub":
        return self.stub(agent_registry_pb2_grpc.AgentRegistryStub, agent="")

    @property
    def gateway(self) -> "agent_gateway_pb2_grpc.AgentGatewayAsyncStub":
        return self.stub(agent_gateway_pb2_grpc.AgentGatewayStub, agent="")

    @property
    def pool(self) -> "agent_pool_pb2_grpc.AgentPoolAsyncStub":
        return self.stub(agent_pool_pb2_grpc.AgentPoolStub, agent="")

    @property
    def images(self) -> "image_service_pb2_grpc.ImageServiceAsyncStub":
        return self.stub(image_service_pb2_grpc.ImageServiceStub, agent="")

    def stub(self, stub: Callable[[aio.Channel], StubT], *, agent: str | None = None) -> StubT:
        """As `Client.stub`."""
        return stub(self._connection.channel(self._agent if agent is None else agent))

    def agent(self, name: str) -> "AsyncClient":
        """As `Client.agent`."""
        bound = AsyncClient.__new__(AsyncClient)
        bound._connection = self._connection
        bound._agent = name
        bound._leases = self._leases
        self._connection.channel(name)
        return bound

    async def generate_text(
        self,
        agent: str,
        prompt: str,
        *,
        temperature: float = 0.0,
        max_tokens: int = 0,
        timeout_s: float | None = None,
    ) -> text_generation_pb2.GenerateTextResponse:
        """As `Client.generate_text`."""
        request = text_generation_pb2.GenerateTextRequest(
            prompt=prompt, temperature=temperature, max_tokens=max_tokens
        )
        return await self.agent(agent).text_generation.GenerateText(request, timeout=timeout_s)

    async def stream_text(
        self,
        agent: str,
        prompt: str,
        *,
        temperature: float = 0.0,
        max_tokens: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncIterator[text_generation_pb2.StreamTextResponse]:
        """As `Client.stream_text`: `async for piece in …`."""
        request = text_generation_pb2.StreamTextRequest(prompt=prompt, temperature=temperature, max_tokens=max_tokens)
        async for piece in self.agent(agent).text_generation.StreamText(request, timeout=timeout_s):
            yield piece

    async def call_agent(
        self, agent: str, request: Mapping[str, Any], *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """As `Client.call_agent`."""
        message = dynamic.call_request(agent, request)
        return dynamic.call_response(await self.gateway.CallAgent(message, timeout=timeout_s))

    def conversation(self, agent: str, conversation_id: str | None = None) -> AsyncConversation:
        """As `Client.conversation`."""
        return AsyncConversation(self._connection, agent, conversation_id)

    async def conversations(
        self, agent: str | None = None, *, all_principals: bool = False
    ) -> AsyncIterator[conversation_service_pb2.Conversation]:
        """As `Client.conversations`: `async for conversation in …`."""
        stub: conversation_service_pb2_grpc.ConversationServiceAsyncStub = self.stub(
            conversation_service_pb2_grpc.ConversationServiceStub, agent=""
        )
        request = conversation_service_pb2.ListConversationsRequest(agent=agent or "", all_principals=all_principals)
        while True:
            page = await stub.ListConversations(request)
            for conversation in page.conversations:
                yield conversation
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    async def register_agent(
        self, registration_data: Mapping[str, Any], *, lease_ttl_s: float | None = None
    ) -> registry_pb2.AgentInfo:
        """As `Client.register_agent`, with a task that renews the lease."""
        request = register_request(registration_data, lease_ttl_s)
        response = await self.registry.RegisterAgent(request)
        lease = Lease(request)
        lease.answered(response)
        await self._release(lease.agent_id)
        self._leases[lease.agent_id] = asyncio.create_task(self._keep(lease), name=f"lease-{lease.agent_id}")
        return response.agent

    async def deregister_agent(self, agent_id: str) -> None:
        """As `Client.deregister_agent`."""
        await self._release(agent_id)
        await self.registry.DeregisterAgent(registry_pb2.DeregisterAgentRequest(agent_id=agent_id))

    async def await_connection(self, timeout_s: float | None = None) -> None:
        """As `Client.await_connection`."""
        wait_s = self._connection.target.timeout_s if timeout_s is None else timeout_s
        if not await self._connection.connected(wait_s):
            raise await asyncio.to_thread(handshake.not_connected, self._connection.target, wait_s)

    async def close(self) -> None:
        """As `Client.close`."""
        for agent_id in list(self._leases):
            await self._release(agent_id)
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _release(self, agent_id: str) -> None:
        if task := self._leases.pop(agent_id, None):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _keep(self, lease: Lease) -> None:
        while True:
            await asyncio.sleep(lease.delay_s)
            request = lease.request()
            try:
                if isinstance(request, registry_pb2.KeepAliveRequest):
                    lease.answered(await self.registry.KeepAlive(request, timeout=5, wait_for_ready=False))
                else:
                    lease.answered(await self.registry.RegisterAgent(request, timeout=10, wait_for_ready=False))
            except errors.AgentError as error:
                lease.failed(error)
                _log.warning("the lease of %s was not renewed: %s", lease.agent_id, error.message)
