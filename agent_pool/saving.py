"""Keeps what is on disk up with what is desired and running."""

import asyncio
from collections.abc import Callable

from agentruntime import log

from agent_pool.state import SavedDeployment, StateStore

# Changes that nobody waits for are saved together.
_SAVE_DELAY_S = 0.25
_SAVE_RETRY_S = 2.0
_log = log.get("agent_pool.saving")


class Saver:
    """Of one state. `close` it.

    Args:
        state: where it goes.
        now: tells what there is to be saved of an agent; None if nothing is.
    """

    def __init__(self, state: StateStore, now: Callable[[str], SavedDeployment | None]) -> None:
        self._state = state
        self._now = now
        self._changed: set[str] = set()
        self._woken = asyncio.Event()
        self._writing = asyncio.Lock()
        self._task = asyncio.create_task(self._keep_saved())

    def soon(self, agent: str) -> None:
        """Something of an agent changed that nobody waits for: where restarted workers are."""
        self._changed.add(agent)
        self._woken.set()

    async def save(self, agent: str) -> None:
        """On disk when it returns, with whatever else there was to save.

        Raises:
            ResourceExhausted: the disk is full, or fails.
        """
        self._changed.add(agent)
        await self._write()

    async def close(self) -> None:
        """Saves a last time."""
        self._task.cancel()
        await asyncio.wait([self._task])
        try:
            await self._write()
        finally:
            self._state.close()

    async def _write(self) -> None:
        """Writes what has changed; those who wait for a writing that goes on are written together by the first."""
        async with self._writing:
            changed, self._changed = self._changed, set()
            if not changed:
                return
            try:
                await self._state.save({agent: self._now(agent) for agent in changed})
            except BaseException:
                self._changed |= changed
                raise

    async def _keep_saved(self) -> None:
        while True:
            await self._woken.wait()
            await asyncio.sleep(_SAVE_DELAY_S)
            self._woken.clear()
            try:
                await self._write()
            except Exception as error:
                # A full disk must not end the saving: the next round tries again.
                _log.error("the pool's state could not be saved", exc_info=error)
                self._woken.set()
                await asyncio.sleep(_SAVE_RETRY_S)
