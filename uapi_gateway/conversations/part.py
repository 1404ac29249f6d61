"""The gateway's part in conversations, put together: the log, the door for workers, and all that goes on beside."""

import asyncio
from collections.abc import Callable

from agentruntime._proto.uapi.v1 import conversation_service_pb2_grpc as conversation_grpc
from agentruntime.launch import EVENT_LOG
from grpc import aio

from uapi_gateway import inner
from uapi_gateway.access.checks import Checks
from uapi_gateway.access.policy import Policy
from uapi_gateway.conversations.door import LogDoor
from uapi_gateway.conversations.ends import Ends
from uapi_gateway.conversations.expiry import keep_bounds
from uapi_gateway.conversations.log import EventLog
from uapi_gateway.conversations.recovery import Recovery
from uapi_gateway.conversations.sending import Sender
from uapi_gateway.conversations.service import ConversationService
from uapi_gateway.conversations.store import Store
from uapi_gateway.kernel.audit import AuditLog
from uapi_gateway.kernel.doors import Door
from uapi_gateway.registry import Registry
from uapi_gateway.settings import Settings


class Conversations:
    """All of it.

    Args:
        settings: where conversations are kept.
        registry: the agents.
        policy: who may call what, now.
    """

    def __init__(self, settings: Settings, registry: Registry, policy: Callable[[], Policy]) -> None:
        self._settings = settings
        self._registry = registry
        self._through = inner.channel(settings.home)
        # What the store takes to import has time until callers are served.
        self._begin = asyncio.Event()
        self.log = EventLog(self._opened)
        self.sender = Sender(registry, policy, self.log, self._through)
        self.recovery = Recovery(self.log, registry, self._through)

    def add_to(self, control: aio.Server, checks: Checks, audit: AuditLog) -> None:
        """Serves calls that name no agent."""
        service = ConversationService(self.log, self._registry, checks, audit)
        conversation_grpc.add_ConversationServiceServicer_to_server(service, control)

    def door(self) -> Door:
        """Where workers come in."""
        handle = LogDoor(self.log, Ends(self._registry)).handle
        return Door(self._settings.home, self._registry, EVENT_LOG, handle)

    def begin(self) -> None:
        """Callers are served."""
        self._begin.set()

    async def run(self) -> None:
        """Until cancelled; no part goes on without the others."""
        async with asyncio.TaskGroup() as parts:
            parts.create_task(self.log.run())
            parts.create_task(self.recovery.run())
            parts.create_task(keep_bounds(self.log, self._registry, self._settings.conversations_interval_s))

    async def close(self) -> None:
        await self._through.close()

    async def _opened(self) -> Store:
        await self._begin.wait()
        store = await asyncio.to_thread(_store, self._settings)
        await store.open()
        return store


def _store(settings: Settings) -> Store:
    from uapi_gateway.conversations.sql import SqlStore  # noqa: PLC0415 — SQLAlchemy takes half a second to import

    return SqlStore(settings.conversations, settings.home.state / "blobs")
