"""Deletes, again and again, what of the agents' conversations is older or more than they say."""

import asyncio
import time

from agentruntime import log
from agentruntime.errors import StoreUnavailable

from uapi_gateway.conversations.log import EventLog
from uapi_gateway.registry import Agent, Registry

_log = log.get("uapi_gateway.conversations")


async def keep_bounds(conversations: EventLog, registry: Registry, interval_s: float) -> None:
    """Looks at all agents, until cancelled."""
    while True:
        await asyncio.sleep(interval_s)
        for agent in registry.agents():
            try:
                await _keep(conversations, agent, time.time_ns())
            except (StoreUnavailable, OSError) as error:
                # OSError: a file of theirs cannot be removed.
                _log.warning("conversations could not be looked through; tried again", error=str(error))


async def _keep(conversations: EventLog, agent: Agent, now_ns: int) -> None:
    keeping = agent.keeping
    expired = trimmed = 0
    if keeping.ttl_s:
        expired = await conversations.expire(agent.agent_id, now_ns - round(keeping.ttl_s * 1e9))
    if keeping.max_events or keeping.max_bytes:
        trimmed = await conversations.trim(agent.agent_id, max_events=keeping.max_events, max_bytes=keeping.max_bytes)
    if expired or trimmed:
        _log.info(
            "conversations were deleted as their agent says", agent=agent.agent_id, expired=expired, events=trimmed
        )
