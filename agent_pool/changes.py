"""Who hears of changes: a watcher is told which agents changed, never how often, so a slow one costs nothing."""

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

# For the gateway to watch again, after it or the pool was started again.
_BACK_S = 3.0


class Subscription:
    """What one watcher has not heard yet."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._woken = asyncio.Event()

    def put(self, name: str) -> None:
        self._names[name] = None
        self._woken.set()

    async def take(self) -> list[str]:
        """The agents that changed since the last time; waits for one."""
        await self._woken.wait()
        self._woken.clear()
        names, self._names = list(self._names), {}
        return names


class Changes:
    """Tells all watchers."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        # Of them, those of watchers from outside.
        self._watchers: set[Subscription] = set()
        self._watched = asyncio.Event()
        self._expected_until = 0.0

    def publish(self, agent: str) -> None:
        for subscription in self._subscriptions:
            subscription.put(agent)

    def expect(self) -> None:
        """Somebody who watched is gone, or watched this pool's predecessor, and should come back soon."""
        self._watched.clear()
        self._expected_until = asyncio.get_running_loop().time() + _BACK_S

    async def watched(self) -> None:
        """Comes back once somebody watches who is expected, or is late."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._expected_until):
                await self._watched.wait()

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """For the pool's own parts: nobody routes by it, and no drain waits for it."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    @contextmanager
    def watch(self) -> Iterator[Subscription]:
        """For a watcher that routes by what it hears."""
        with self.subscribe() as subscription:
            self._watchers.add(subscription)
            self._watched.set()
            try:
                yield subscription
            finally:
                self._watchers.discard(subscription)
                if not self._watchers:
                    self.expect()
