"""Saving: what is waited for is on disk, together with others; what fails is tried again."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest
from agentruntime import errors

from agent_pool.saving import Saver
from agent_pool.state import SavedDeployment, StateStore
from tests.agent_pool.test_state import deployment
from tests.waiting import eventually


class CountingStore(StateStore):
    """Counts its writings, and fails the first `failures` of them."""

    def __init__(self, directory: Path, failures: int = 0) -> None:
        super().__init__(directory)
        self.writings = 0
        self.failures = failures

    async def save(self, agents: Mapping[str, SavedDeployment | None]) -> None:
        self.writings += 1
        if self.writings <= self.failures:
            raise errors.ResourceExhausted("the disk is full")
        await super().save(agents)


def saved(agent: str) -> SavedDeployment | None:
    return SavedDeployment.of(deployment()).model_copy(update={"agent": agent}) if agent != "gone" else None


async def test_those_who_wait_are_written_together(tmp_path: Path) -> None:
    store = CountingStore(tmp_path)
    saver = Saver(store, saved)
    names = [f"a{number:03d}" for number in range(100)]
    await asyncio.gather(*(saver.save(name) for name in names), saver.save("gone"))
    assert [each.agent for each in store.load()] == names
    assert store.writings <= 2
    await saver.close()


async def test_what_nobody_waits_for_is_saved_too_and_again_after_a_failure(tmp_path: Path) -> None:
    store = CountingStore(tmp_path, failures=1)
    saver = Saver(store, saved)
    with pytest.raises(errors.ResourceExhausted):
        await saver.save("a")
    saver.soon("b")
    await eventually(lambda: [each.agent for each in store.load()] == ["a", "b"])
    saver.soon("c")
    await saver.close()
    store = CountingStore(tmp_path)
    assert [each.agent for each in store.load()] == ["a", "b", "c"]
    store.close()
