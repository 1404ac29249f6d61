"""A slow watcher hears of everything once."""

import asyncio

import pytest

from agent_pool.changes import Changes


async def test_changes_are_told_once_however_many() -> None:
    changes = Changes()
    changes.publish("nobody hears")
    with changes.subscribe() as slow, changes.subscribe() as other:
        for _ in range(1000):
            changes.publish("a")
            changes.publish("b")
        assert await slow.take() == ["a", "b"]
        waiting = asyncio.create_task(slow.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        changes.publish("c")
        assert await waiting == ["c"]
        assert await other.take() == ["a", "b", "c"]
    changes.publish("gone")


async def test_a_watcher_that_is_expected_is_waited_for() -> None:
    changes = Changes()
    await asyncio.wait_for(changes.watched(), 1)
    changes.expect()
    waiting = asyncio.create_task(changes.watched())
    await asyncio.sleep(0)
    assert not waiting.done()
    with changes.subscribe():  # for itself: it routes nothing
        await asyncio.sleep(0)
        assert not waiting.done()
    with changes.watch():
        await asyncio.wait_for(waiting, 1)
        await asyncio.wait_for(changes.watched(), 1)
        with changes.subscribe():
            pass
        await asyncio.wait_for(changes.watched(), 1)
    # Now it is gone, and should come back.
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(changes.watched(), 0.05)


async def test_a_watcher_that_is_late_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_pool.changes._BACK_S", 0.01)
    changes = Changes()
    changes.expect()
    await asyncio.wait_for(changes.watched(), 1)
