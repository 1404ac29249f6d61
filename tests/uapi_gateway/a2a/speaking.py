"""The gateway's A2A over real ports, before a worker and a log in memory, and the SDK's own client for it."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from a2a.client import Client, ClientConfig, create_client
from a2a.types import a2a_pb2 as a2a
from agentruntime.intake import IntakeInterceptor
from agentruntime.interceptors import ServerInterceptor
from grpc import aio
from starlette.applications import Starlette

from tests.uapi_gateway.conversations.conversing import MemoryLog, Worker, worker_server
from tests.uapi_gateway.http.serving import served
from uapi_gateway.a2a.core import Core
from uapi_gateway.a2a.entrance import A2AHandler, Entrance
from uapi_gateway.access.checks import Checks
from uapi_gateway.access.headers import PRINCIPAL
from uapi_gateway.access.policy import Policy
from uapi_gateway.conversations import plain
from uapi_gateway.conversations.sending import SERVICE, Sender
from uapi_gateway.kernel.audit import AuditLog
from uapi_gateway.registry import Agent, Demands, Registry

BINDINGS = ("JSONRPC", "HTTP+JSON", "GRPC")


@dataclass
class Speaking:
    """A gateway that speaks A2A."""

    url: str
    grpc: str
    registry: Registry
    worker: Worker
    log: MemoryLog
    policy: Policy
    entrance: Entrance
    clients: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def client(
        self, binding: str, agent: str = "helper", *, streaming: bool = True, principal: str = ""
    ) -> Client:
        """A client that has read the agent's card; with the principal as Envoy would set it."""
        headers = {PRINCIPAL: principal} if principal else {}
        http = await self.clients.enter_async_context(httpx.AsyncClient(headers=headers, timeout=30))
        config = ClientConfig(
            httpx_client=http,
            streaming=streaming,
            supported_protocol_bindings=[binding],
            grpc_channel_factory=lambda url: self._channel(url, headers),
        )
        return await create_client(f"{self.url}/agents/{agent}", config)

    def _channel(self, url: str, metadata: dict[str, str]) -> aio.Channel:
        assert url == self.grpc
        channel = aio.insecure_channel(url, interceptors=[_Unary(metadata)])
        self.clients.push_async_callback(channel.close)
        return channel


class _Unary(aio.UnaryUnaryClientInterceptor):
    """Says more of itself in calls of one answer."""

    def __init__(self, metadata: dict[str, str]) -> None:
        self._metadata = metadata

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        metadata = aio.Metadata(*(details.metadata or ()), *self._metadata.items())
        return await continuation(details._replace(metadata=metadata), request)


def said(text: str = "Hi", **more: Any) -> a2a.SendMessageRequest:
    """A message of a user's."""
    fields = {"message_id": "m", "context_id": "c", **more}
    return a2a.SendMessageRequest(
        message=a2a.Message(role=a2a.ROLE_USER, parts=[a2a.Part(text=text)], **fields),
    )


@contextlib.asynccontextmanager
async def speaking(directory: Path, policy: Policy | None = None) -> AsyncIterator[Speaking]:
    """Agents: `helper` converses, `plain` generates text, `other` does neither, `kept` is for the key `app`."""
    registry, log = Registry(), MemoryLog()
    for name, service in (("helper", SERVICE), ("kept", SERVICE), ("plain", plain.SERVICE), ("other", "p.S")):
        registry.put_pool_agent(Agent(name, (service,), (), image="local/helper:1.2.0"))
    policy = policy or Policy(demands={"kept": Demands(keys=("app",))})
    worker, address = Worker(log), f"unix:{directory}/w.sock"
    server, control = worker_server(worker, address), None
    audit = AuditLog(directory / "audit.db", longest_bytes=2**20)
    checks = Checks(registry, lambda: policy, audit)
    control = aio.server(interceptors=[ServerInterceptor(), IntakeInterceptor(2**26)])
    port = control.add_insecure_port("127.0.0.1:0")
    async with contextlib.AsyncExitStack() as stack:
        await server.start()
        stack.push_async_callback(server.stop, None)
        channel = await stack.enter_async_context(aio.insecure_channel(address))
        stack.push_async_callback(audit.close)

        sender = Sender(registry, lambda: policy, log, channel)
        entered = Entrance(Core(registry, lambda: policy, sender, log, tls=False, grpc_port=port))
        control.add_generic_rpc_handlers((A2AHandler(entered, checks),))
        await control.start()
        stack.push_async_callback(control.stop, None)
        url = await stack.enter_async_context(served(Starlette(routes=entered.routes())))
        made = Speaking(url, f"127.0.0.1:{port}", registry, worker, log, policy, entered)
        stack.push_async_callback(made.clients.aclose)
        yield made
