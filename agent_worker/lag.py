"""For how long a worker's event loop was blocked: measured at each turn of it, so an idle one pays nothing."""

import selectors
import time
from collections.abc import Callable


class LagSelector(selectors.EpollSelector):
    """What the event loop waits with. From one wait to the next is how long an event may have had to wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._woken_s = clock()
        self._longest_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._longest_s = max(self._longest_s, self._clock() - self._woken_s)
        try:
            return super().select(timeout)
        finally:
            self._woken_s = self._clock()

    def take(self) -> float:
        """The longest turn since the last time, in seconds."""
        longest_s, self._longest_s = self._longest_s, 0.0
        return longest_s
