"""A slow watcher hears of everything once."""

import asyncio

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
