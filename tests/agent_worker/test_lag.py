"""How long an event loop was blocked, as its selector sees it."""

import asyncio
import time

from agent_worker.lag import LagSelector


def test_the_longest_turn_is_told_once() -> None:
    lag = LagSelector()

    async def main() -> list[float]:
        lag.take()
        await asyncio.sleep(0.3)
        waited = lag.take()
        time.sleep(0.2)
        await asyncio.sleep(0)
        time.sleep(0.3)
        await asyncio.sleep(0)
        blocked = lag.take()
        await asyncio.sleep(0)
        return [waited, blocked, lag.take()]

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(lag)) as runner:
        waited, blocked, after = runner.run(main())
    assert waited < 0.3
    # Not the sum of two turns.
    assert 0.3 <= blocked < 0.5
    assert after < 0.3
