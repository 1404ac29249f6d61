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


async def _at_once(changes: Changes) -> bool:
    try:
        await asyncio.wait_for(changes.routed(), 0.05)
    except TimeoutError:
        return False
    return True


async def test_a_router_is_waited_for_until_it_has_taken_up_what_happened() -> None:
    changes = Changes()
    assert await _at_once(changes)
    with changes.subscribe("r") as router, changes.subscribe():
        # It knows nothing yet.
        assert not await _at_once(changes)
        changes.acknowledge("r", 0)
        assert await _at_once(changes)
        changes.publish("a")
        await router.take()
        waiting = asyncio.create_task(changes.routed())
        await asyncio.sleep(0)
        # What comes later is not waited for.
        changes.publish("b")
        changes.acknowledge("other", 9)
        await asyncio.sleep(0)
        assert not waiting.done()
        changes.acknowledge("r", router.told)
        await asyncio.wait_for(waiting, 1)
        assert not await _at_once(changes)


async def test_what_is_told_late_is_acknowledged_late() -> None:
    changes = Changes()
    with changes.subscribe("r") as router:
        changes.acknowledge("r", 0)
        changes.publish("a")
        assert await router.take() == ["a"]
        changes.publish("a")
        changes.acknowledge("r", router.told)
        assert not await _at_once(changes)
        assert await router.take() == ["a"]
        changes.acknowledge("r", router.told)
        assert await _at_once(changes)


async def test_a_router_that_left_is_waited_for_and_knows_all_when_it_is_back() -> None:
    changes = Changes()
    with changes.subscribe("r"):
        changes.publish("a")
        waiting = asyncio.create_task(changes.routed())
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    with changes.subscribe("s"):
        changes.acknowledge("s", 0)
        await asyncio.wait_for(waiting, 1)


async def test_a_pool_that_took_over_waits_for_the_router_of_the_one_before() -> None:
    changes = Changes()
    changes.expect()
    assert not await _at_once(changes)
    with changes.subscribe():  # for itself: it routes nothing
        assert not await _at_once(changes)
    with changes.subscribe("r"):
        changes.acknowledge("r", 0)
        assert await _at_once(changes)


async def test_a_router_that_is_late_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_pool.changes._PATIENCE_S", 0.01)
    changes = Changes()
    changes.expect()
    await asyncio.wait_for(changes.routed(), 1)
    with changes.subscribe("r"):
        await asyncio.wait_for(changes.routed(), 1)
