"""How long an event loop was blocked, as its selector sees it."""

import asyncio

from agent_worker.lag import LagSelector


def test_the_longest_turn_is_told_once() -> None:
    # When it was made, and before and after each wait.
    times_s = iter((10.0, 10.2, 15.2, 15.5, 15.5, 15.6, 20.0))
    with LagSelector(clock=lambda: next(times_s)) as lag:
        # Turns of 0.2, 0.3 and 0.1 s; waits of 5, 0 and 4.4 s, which are none.
        for _ in range(3):
            lag.select(0)
        assert round(lag.take(), 6) == 0.3
        assert lag.take() == 0.0


def test_an_event_loop_runs_on_it() -> None:
    lag = LagSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(lag)) as runner:
        runner.run(asyncio.sleep(0.01))
    assert lag.take() > 0
