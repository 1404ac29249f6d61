"""How much one page of tasks may be, and be read for."""

from typing import Any

import pytest
from a2a.types import a2a_pb2 as a2a
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto

from tests.uapi_gateway.conversations.conversing import MemoryLog
from uapi_gateway.a2a import listing
from uapi_gateway.conversations.store import Key, Page


class Log(MemoryLog):
    """Counts what is read, and lists by pages."""

    def __init__(self) -> None:
        super().__init__()
        self.watched = 0

    async def said(self, conversation: str, *message_ids: str, length: int = 1) -> None:
        """Messages that were answered."""
        for message_id in message_ids:
            text = proto.Part(text="x" * length)
            contents: list[dict[str, Any]] = [
                {"message": proto.ChatMessage(parts=[proto.Part(text="Hi")])},
                {"attempt": proto.Attempt(number=1)},
                {"chunk": text},
                {"completion": proto.ChatMessage(parts=[text])},
            ]
            key = Key("local", "a", conversation)
            await self.append(key, *(proto.Event(message_id=message_id, **content) for content in contents))

    def watch(self, *args: Any, **options: Any) -> Any:
        self.watched += 1
        return super().watch(*args, **options)

    async def list(self, principal: str | None, agent: str, page_size: int = 0, page_token: str = "") -> Page:
        found, first = list(self.events), int(page_token or 0)
        more = str(first + page_size) if first + page_size < len(found) else ""
        return Page(tuple([await self.find(key) for key in found[first : first + page_size]]), more)


async def pages(log: Log, **asked: Any) -> list[list[str]]:
    """The ids of all tasks, page by page."""
    found, token = [], ""
    while True:
        page = await listing.tasks(log, "local", "a", a2a.ListTasksRequest(page_token=token, **asked))
        found.append([task.id for task in page.tasks])
        token = page.next_page_token
        if not token:
            assert page.total_size == sum(map(len, found))
            return found
        assert page.total_size > sum(map(len, found))


async def test_a_page_ends_when_its_tasks_are_large() -> None:
    log = Log()
    await log.said("c", "m1", "m2", "m3", length=3 * 2**20)
    await log.said("d", "m", length=5 * 2**20)
    await log.said("e", "m")
    found = await pages(log, include_artifacts=True)
    assert found == [["c.m3", "c.m2"], ["c.m1", "d.m"], ["e.m"]]
    assert await pages(log, include_artifacts=True, context_id="c") == [["c.m3", "c.m2"], ["c.m1"]]
    # Without what makes them large it is one.
    assert await pages(log) == [["c.m3", "c.m2", "c.m1", "d.m", "e.m"]]


async def test_a_page_ends_when_much_was_read_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_MOST_READ_BYTES", 3 * 2**16)
    log = Log()
    for number in range(7):
        await log.said(f"c{number}", "m")
    page = await listing.tasks(log, "local", "a", a2a.ListTasksRequest(status=a2a.TASK_STATE_FAILED))
    assert (list(page.tasks), log.watched) == ([], 3)
    assert page.next_page_token
    assert await pages(log, status=a2a.TASK_STATE_FAILED) == [[], [], []]
    assert [len(page) for page in await pages(log)] == [3, 3, 1]
