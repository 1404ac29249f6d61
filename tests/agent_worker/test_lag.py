"""How long an event loop was blocked, as its selector sees it."""

import asyncio
import time

from agent_worker.lag import LagSelector


def test_the_longest_turn_is_told_once() -> None:
    lag = LagSelector()

    async def main() -> list[float]:
        lag.take()
        await asyncio.sleep(0.1)
        waited = lag.take()
        time.sleep(0.05)
        await asyncio.sleep(0)
        time.sleep(0.1)
        await asyncio.sleep(0)
        blocked = lag.take()
        await asyncio.sleep(0)
        return [waited, blocked, lag.take()]

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(lag)) as runner:
        waited, blocked, after = runner.run(main())
    assert waited < 0.05
    assert 0.1 <= blocked < 0.15
    assert after < 0.05
