"""A conversation's share of its worker's slots: one, kept from a message to the next while nobody else wants it."""

import asyncio
from collections.abc import Callable

from agent_worker.admission import Slots


class Slot:
    """Of one conversation, which has it or not.

    Args:
        slots: the worker's.
    """

    __slots__ = ("_granted", "_is_held", "_slots")

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._is_held = False
        # Set while it waits for one.
        self._granted: Callable[[], None] | None = None

    def take(self) -> bool:
        """Whether it is held now."""
        self._is_held = self._is_held or self._slots.try_take()
        return self._is_held

    def wait(self, granted: Callable[[], None]) -> None:
        """Calls `granted` when it has come, in its turn."""
        if self._granted is None:
            self._granted = granted
            self._slots.wait(self._come)

    def free(self) -> None:
        if self._is_held:
            self._is_held = False
            self._slots.free()

    def offer(self) -> None:
        """Frees it if somebody else waits for one."""
        if self._slots.are_wanted:
            self.free()

    def leave(self, task: "asyncio.Task[None] | None") -> None:
        """Has and wants none any more; what a task still does has it until it has ended, however long that takes."""
        if task is not None and self._is_held:
            self._is_held = False
            task.add_done_callback(lambda _: self._slots.free())
        self.free()
        if self._granted is not None:
            self._granted = None
            self._slots.leave(self._come)

    def _come(self) -> None:
        granted, self._granted = self._granted, None
        if self._is_held:
            self._slots.free()  # it came by another one meanwhile
        self._is_held = True
        if granted is not None:
            granted()
