"""Keeps logs within their bounds, and secrets out of them, while the pool runs."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

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
    over = threading.Event()
    # Of its own: handing each look to a thread costs more than the look.
    thread = ThreadPoolExecutor(1, thread_name_prefix="logs")
    try:
        await asyncio.get_running_loop().run_in_executor(thread, _keep, logs, over)
    finally:
        over.set()
        thread.shutdown(wait=False)


def _keep(logs: LogStore, over: threading.Event) -> None:
    """Until that is set."""
    looked_s = 0.0
    scrubber = Scrubber(logs)
    while not over.is_set():
        busy = False
        try:
            busy = logs.hold_bounds() | scrubber.look()
            if time.monotonic() - looked_s >= _ALL_S:
                looked_s = time.monotonic()
                logs.maintain(time.time())
        except Exception as error:
            # Whatever it is, the next round tries again: logs that nobody keeps within bounds fill the disk.
            _log.warning("logs could not be trimmed", exc_info=error)
        over.wait(_SOON_S if busy else _LOOK_S)
