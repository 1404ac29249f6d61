"""One slot of a conversation, among others who want one too."""

from agent_worker.admission import Slots
from agent_worker.conversations.slot import Slot


async def test_it_is_kept_until_somebody_else_wants_one() -> None:
    slots = Slots(concurrency=1, queue=1)
    mine, other = Slot(slots), Slot(slots)
    granted: list[str] = []
    assert mine.take()
    mine.offer()
    assert mine.take()
    assert not other.take()
    other.wait(lambda: granted.append("other"))
    mine.offer()
    assert granted == ["other"]
    assert not mine.take()
    assert other.take()


async def test_whoever_has_one_when_its_turn_comes_keeps_one_only() -> None:
    slots = Slots(concurrency=2, queue=1)
    mine, first, second = Slot(slots), Slot(slots), Slot(slots)
    granted: list[str] = []
    assert first.take()
    assert second.take()
    mine.wait(lambda: granted.append("mine"))
    mine.wait(lambda: granted.append("asked twice"))
    first.free()
    assert granted == ["mine"]
    second.free()
    assert mine.take()
    assert first.take()
    assert not second.take()


async def test_whoever_leaves_waits_for_none() -> None:
    slots = Slots(concurrency=1, queue=1)
    mine, other = Slot(slots), Slot(slots)
    assert other.take()
    mine.wait(lambda: None)
    mine.leave(None)
    other.free()
    assert other.take()
