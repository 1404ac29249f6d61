"""Hears from the pool which agents run where, and remembers it while the pool is away."""

import asyncio
import secrets
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
from agentruntime import log
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from agentruntime._proto.uapi.v1 import agent_pool_pb2_grpc
from agentruntime.errors import DiskFull
from grpc import aio

from uapi_gateway.deployments import from_deployment
from uapi_gateway.registry import Registry
from uapi_gateway.store import Store

_log = log.get("uapi_gateway.pool_watch")
_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 0.2
# Before a write that the disk refused is tried again.
_SAVE_DELAY_S = 1.0
# For Envoy to balance by what is new; the pool waits no longer either.
_BALANCED_S = 3.0
# Says within so many seconds whether calls go by the registry as it is.
Balanced = Callable[[float], Awaitable[bool]]


def pool_channel(path: Path) -> aio.Channel:
    """A channel to the pool that finds it again within 0.1 s of its return."""
    return aio.insecure_channel(
        f"unix:{path}",
        options=[
            ("grpc.initial_reconnect_backoff_ms", 50),
            # Not a back-off, despite its name, but the least time that a connection gets to be made.
            ("grpc.min_reconnect_backoff_ms", 2000),
            ("grpc.max_reconnect_backoff_ms", 100),
            ("grpc.max_receive_message_length", 64 * 2**20),
        ],
    )


class PoolWatch:
    """Keeps one `WatchDeployments` stream open and the registry equal to what it says.

    What it was told it acknowledges once calls go by it, so that the pool can end workers that drain.
    """

    def __init__(self, channel: aio.Channel, registry: Registry, store: Store, balanced: Balanced) -> None:
        self._stub: agent_pool_pb2_grpc.AgentPoolAsyncStub = agent_pool_pb2_grpc.AgentPoolStub(channel)
        self._registry = registry
        self._store = store
        self._balanced = balanced
        # The stream's name, and the latest change to acknowledge there.
        self._router = ""
        self._change = asyncio.Queue[int](1)
        # All that the pool runs is known, and changes arrive.
        self.synced = False
        # What is to be written down, the latest of each agent; None if it is gone.
        self._unsaved: dict[str, pool.Deployment | None] = {}
        self._due = asyncio.Event()

    async def run(self) -> None:
        """Watches until cancelled. No part goes on without the others."""
        async with asyncio.TaskGroup() as all_parts:
            all_parts.create_task(self._save())
            all_parts.create_task(self._watch())
            all_parts.create_task(self._acknowledge())

    async def _watch(self) -> None:
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                await self._watch_once()
            except grpc.RpcError as error:
                if self.synced:
                    _log.warning("lost the pool; what it last said is kept", error=str(error))
            delay_s = _FIRST_DELAY_S if self.synced else min(2 * delay_s, _LONGEST_DELAY_S)
            self.synced = False
            await asyncio.sleep(delay_s)

    async def _watch_once(self) -> None:
        present: set[str] = set()
        self._router = secrets.token_hex(8)
        call = self._stub.WatchDeployments(pool.WatchDeploymentsRequest(router=self._router))
        try:
            async for event in call:
                self._take(event, present)
                if event.HasField("change"):
                    self._note(event.change)
        finally:
            call.cancel()

    def _take(self, event: pool.WatchDeploymentsResponse, present: set[str]) -> None:
        match event.WhichOneof("event"):
            case "changed":
                present.add(event.changed.agent)
                self._registry.put_pool_agent(from_deployment(event.changed))
                self._remember(event.changed.agent, event.changed)
            case "removed":
                present.discard(event.removed)
                self._registry.remove_pool_agent(event.removed)
                self._remember(event.removed, None)
            case "synced" if not self.synced:
                # What the pool did not name has gone while nobody watched.
                for agent_id in self._registry.keep_pool_agents(present):
                    self._remember(agent_id, None)
                self.synced = True
                _log.info("the pool is watched", agents=len(present))

    def _note(self, change: int) -> None:
        if self._change.full():
            self._change.get_nowait()
        self._change.put_nowait(change)

    async def _acknowledge(self) -> None:
        while True:
            change = await self._change.get()
            router = self._router
            # Envoy may be away; the pool does not wait for long.
            if await self._balanced(_BALANCED_S):
                request = pool.AcknowledgeDeploymentsRequest(router=router, change=change)
                try:
                    await self._stub.AcknowledgeDeployments(request, timeout=_BALANCED_S)
                except grpc.RpcError as error:
                    _log.debug("the pool could not be told", error=str(error))

    def _remember(self, agent_id: str, deployment: pool.Deployment | None) -> None:
        self._unsaved[agent_id] = deployment
        self._due.set()

    async def _save(self) -> None:
        """Writes beside the watch: a route must not wait for a disk, and the pool can always say it again."""
        while True:
            await self._due.wait()
            self._due.clear()
            while self._unsaved:
                agent_id = next(iter(self._unsaved))
                deployment = self._unsaved.pop(agent_id)
                try:
                    await self._write(agent_id, deployment)
                except (sqlite3.Error, DiskFull) as error:
                    _log.error("an agent could not be written down; tried again", agent=agent_id, error=str(error))
                    # What the pool has said since is newer.
                    self._unsaved.setdefault(agent_id, deployment)
                    await asyncio.sleep(_SAVE_DELAY_S)

    async def _write(self, agent_id: str, deployment: pool.Deployment | None) -> None:
        if deployment is None:
            await self._store.remove_deployment(agent_id)
        else:
            await self._store.save_deployment(deployment)
