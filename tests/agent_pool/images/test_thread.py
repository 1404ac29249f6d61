"""Threads whose caller does not wait any more."""

import asyncio
import threading

import pytest

from agent_pool.images.thread import in_thread


async def test_results_and_errors_come_back() -> None:
    assert await in_thread(lambda given_up: given_up.is_set()) is False
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda _: 1 // 0)


async def test_who_is_cancelled_waits_for_the_thread() -> None:
    loop, begun, told, end = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event(), threading.Event()

    def work(given_up: threading.Event) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert given_up.wait(30)
        loop.call_soon_threadsafe(told.set)
        assert end.wait(30)
        raise ValueError

    lock = asyncio.Lock()

    async def locked() -> None:
        async with lock:
            await in_thread(work)

    task = asyncio.create_task(locked())
    await begun.wait()
    task.cancel()
    await told.wait()
    task.cancel()  # impatient
    await asyncio.sleep(0)
    assert lock.locked()
    end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not lock.locked()
