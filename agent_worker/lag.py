"""For how long a worker's event loop was blocked: measured at each turn of it, so an idle one pays nothing."""

import selectors
import time


class LagSelector(selectors.EpollSelector):
    """What the event loop waits with. From one wait to the next is how long an event may have had to wait."""

    def __init__(self) -> None:
        super().__init__()
        self._woken_s = time.monotonic()
        self._longest_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._longest_s = max(self._longest_s, time.monotonic() - self._woken_s)
        try:
            return super().select(timeout)
        finally:
            self._woken_s = time.monotonic()

    def take(self) -> float:
        """The longest turn since the last time, in seconds."""
        longest_s, self._longest_s = self._longest_s, 0.0
        return longest_s
