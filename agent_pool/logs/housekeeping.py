"""Keeps logs within their bounds, and secrets out of them, while the pool runs."""

import asyncio
import time

from agentruntime import log

from agent_pool.logs.scrubbing import Scrubber
from agent_pool.logs.store import LogStore

# Between two looks at the logs' sizes; sooner after one that had become too long.
_LOOK_S = 0.2
_SOON_S = 0.01
# Between two looks at all that is kept: ages, what is gone, settings that changed.
_ALL_S = 3.0
_log = log.get("agent_pool.logs")


async def keep(logs: LogStore) -> None:
    """Until it is cancelled."""
    looked_s = 0.0
    scrubber = Scrubber(logs)
    while True:
        busy = False
        try:
            busy = await asyncio.to_thread(lambda: logs.hold_bounds() | scrubber.look())
            if time.monotonic() - looked_s >= _ALL_S:
                looked_s = time.monotonic()
                await asyncio.to_thread(logs.maintain, time.time())
        except Exception as error:
            # Whatever it is, the next round tries again: logs that nobody keeps within bounds fill the disk.
            _log.warning("logs could not be trimmed", exc_info=error)
        await asyncio.sleep(_SOON_S if busy else _LOOK_S)
