"""Keeps what is on disk up with what is desired and running."""

import asyncio
from collections.abc import Callable

from agentruntime import log

from agent_pool.state import Saved, StateFile

# Changes that nobody waits for are saved together.
_SAVE_DELAY_S = 0.25
_SAVE_RETRY_S = 2.0
_log = log.get("agent_pool.saving")


class Saver:
    """Of one state file. `close` it.

    Args:
        state: where it goes.
        now: tells what there is to be saved.
    """

    def __init__(self, state: StateFile, now: Callable[[], Saved]) -> None:
        self._state = state
        self._now = now
        self._unsaved = asyncio.Event()
        self._task = asyncio.create_task(self._keep_saved())

    def soon(self) -> None:
        """Something changed that nobody waits for: where restarted workers are."""
        self._unsaved.set()

    async def save(self) -> None:
        """On disk when it returns."""
        self._unsaved.clear()
        await self._state.save(self._now())

    async def close(self) -> None:
        """Saves a last time."""
        self._task.cancel()
        await asyncio.wait([self._task])
        await self.save()
        self._state.close()

    async def _keep_saved(self) -> None:
        while True:
            await self._unsaved.wait()
            await asyncio.sleep(_SAVE_DELAY_S)
            if self._unsaved.is_set():
                try:
                    await self.save()
                except Exception as error:
                    # A full disk must not end the saving: the next round tries again.
                    _log.error("the pool's state could not be saved", exc_info=error)
                    self._unsaved.set()
                    await asyncio.sleep(_SAVE_RETRY_S)
