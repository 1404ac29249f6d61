"""Who hears of changes: a watcher is told which agents changed, never how often, so a slow one costs nothing."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


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

    def publish(self, agent: str) -> None:
        for subscription in self._subscriptions:
            subscription.put(agent)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        subscription = Subscription()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
