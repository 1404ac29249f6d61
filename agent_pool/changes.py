"""Who hears of changes: a watcher is told which agents changed, never how often, so a slow one costs nothing.

A router is a watcher that sends calls by what it hears. A worker that drains must not end before all routers know.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

# For a router to come back, after it or the pool was started again, and to take up a change.
_PATIENCE_S = 3.0
# Of a router that has not taken up yet what it was told first.
_NOTHING = -1


class Subscription:
    """What one watcher has not heard yet."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._woken = asyncio.Event()
        # Changes since it began: how many there were, were told, and were taken up.
        self.happened = 0
        self.told = 0
        self.acknowledged = _NOTHING

    def put(self, name: str) -> None:
        self._names[name] = None
        self.happened += 1
        self._woken.set()

    async def take(self) -> list[str]:
        """The agents that changed since the last time; waits for one."""
        await self._woken.wait()
        self._woken.clear()
        names, self._names = list(self._names), {}
        self.told = self.happened
        return names


class Changes:
    """Tells all watchers."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        # Of them, those of routers.
        self._routers: dict[str, Subscription] = {}
        self._progress = asyncio.Event()
        self._expected_until = 0.0

    def publish(self, agent: str) -> None:
        for subscription in self._subscriptions:
            subscription.put(agent)

    def expect(self) -> None:
        """A router is gone, or knows this pool's predecessor, and should come back soon."""
        self._expected_until = asyncio.get_running_loop().time() + _PATIENCE_S

    async def routed(self) -> None:
        """Comes back once all routers have taken up the changes until now, or are late."""
        due = {router: router.happened for router in self._routers.values()}
        time_s = asyncio.get_running_loop().time
        deadline_s = time_s() + _PATIENCE_S
        while (now_s := time_s()) < deadline_s and not self._taken_up(due, now_s):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline_s if self._routers else self._expected_until):
                    await self._progress.wait()

    def _taken_up(self, due: dict[Subscription, int], now_s: float) -> bool:
        if not self._routers:
            return now_s >= self._expected_until
        # One that came since then was told first of all how things were.
        return all(router.acknowledged >= due.get(router, 0) for router in self._routers.values())

    def acknowledge(self, router: str, change: int) -> None:
        """A router has taken up all that it was told up to a change."""
        if subscription := self._routers.get(router):
            subscription.acknowledged = max(subscription.acknowledged, change)
            self._progressed()

    def _progressed(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    @contextmanager
    def subscribe(self, router: str = "") -> Iterator[Subscription]:
        """For a watcher; `router` names one that acknowledges what it takes up."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        if router:
            self._routers[router] = subscription
            self._progressed()
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            if router and self._routers.get(router) is subscription:
                del self._routers[router]
                self.expect()
                self._progressed()
