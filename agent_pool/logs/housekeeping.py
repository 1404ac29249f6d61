"""Keeps logs within their bounds while the pool runs."""

import asyncio
import time

from agentruntime import log

from agent_pool.logs.store import LogStore

# A log that is nearly full is looked at so often: above its bound it has at most what is written meanwhile.
_OFTEN_S = 0.1
_ALL_S = 1.0
_log = log.get("agent_pool.logs")


async def keep(logs: LogStore) -> None:
    """Until it is cancelled."""
    looked_s = 0.0
    while True:
        try:
            await asyncio.to_thread(logs.hold_bounds)
            if time.monotonic() - looked_s >= _ALL_S:
                await asyncio.to_thread(logs.maintain, time.time())
                looked_s = time.monotonic()
        except OSError as error:
            # A log that goes while it is looked at; the next round tries again.
            _log.warning("logs could not be trimmed", error=str(error))
        await asyncio.sleep(_OFTEN_S)
