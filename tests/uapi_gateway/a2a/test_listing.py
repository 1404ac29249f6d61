"""How much one page of tasks may be, and be read for."""

from typing import Any

import pytest
from a2a.types import a2a_pb2 as a2a
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto

from tests.uapi_gateway.conversations.conversing import MemoryLog
from uapi_gateway.a2a import listing
from uapi_gateway.conversations.store import Courses, Key, Page


class Log(MemoryLog):
    """Counts what is read, and lists by pages."""

    def __init__(self) -> None:
        super().__init__()
        # How often the events of a message were read, which conversations were looked into, how many messages told.
        self.watched, self.told = 0, 0
        self.looked: list[str] = []

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

    async def messages(self, key: Key, *args: Any, **options: Any) -> Courses:
        self.looked.append(key.conversation_id)
        found = await super().messages(key, *args, **options)
        self.told += len(found.courses)
        return found

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
    assert (list(page.tasks), log.looked) == ([], ["c0", "c1", "c2"])
    assert page.next_page_token
    assert await pages(log, status=a2a.TASK_STATE_FAILED) == [[], [], []]
    assert [len(page) for page in await pages(log)] == [3, 3, 1]
    # In the middle of a conversation, too.
    log = Log()
    await log.said("c", *(f"m{number}" for number in range(5)), length=2**17)
    assert [len(page) for page in await pages(log)] == [2, 2, 1]


async def test_no_more_is_read_than_a_page_shows() -> None:
    log = Log()
    await log.said("c", *(f"m{number}" for number in range(300)))
    asked: dict[str, Any] = {"context_id": "c", "page_size": 20, "include_artifacts": True}
    page = await listing.tasks(log, "local", "a", a2a.ListTasksRequest(**asked))
    assert [task.id for task in page.tasks] == [f"c.m{number}" for number in range(299, 279, -1)]
    assert page.total_size == 300
    # What came of a message is in its last event.
    assert page.tasks[0].artifacts[0].parts[0].text == "x"
    assert (log.told, log.watched) == (21, 0)
    # What is said meanwhile moves nothing.
    await log.said("c", "new")
    page = await listing.tasks(log, "local", "a", a2a.ListTasksRequest(**asked, page_token=page.next_page_token))
    assert page.tasks[0].id == "c.m279"
    assert page.total_size == 300
    # There are none.
    await listing.tasks(log, "local", "a", a2a.ListTasksRequest(status=a2a.TASK_STATE_REJECTED))
    assert log.told == 42


async def test_what_was_said_before_a_failure_and_of_what_runs_is_read() -> None:
    log = Log()
    key = Key("local", "a", "c")
    begun: list[dict[str, Any]] = [
        {"message": proto.ChatMessage(parts=[proto.Part(text="Hi")])},
        {"attempt": proto.Attempt(number=1)},
        {"chunk": proto.Part(text="so far")},
    ]
    failure = proto.Failure(code=14, message="broken")
    await log.append(key, *(proto.Event(message_id="m1", **each) for each in [*begun, {"failure": failure}]))
    await log.append(key, *(proto.Event(message_id="m2", **each) for each in begun))
    for artifacts in (False, True):
        page = await listing.tasks(log, "local", "a", a2a.ListTasksRequest(include_artifacts=artifacts))
        states = [task.status.state for task in page.tasks]
        assert states == [a2a.TASK_STATE_WORKING, a2a.TASK_STATE_FAILED]
        texts = [[part.text for each in task.artifacts for part in each.parts] for task in page.tasks]
        assert texts == 2 * [["so far"] if artifacts else []]
    # The failure alone says all but what was said before it.
    assert log.watched == 1 + 2
    (working,) = (await listing.tasks(log, "local", "a", a2a.ListTasksRequest(status=a2a.TASK_STATE_WORKING))).tasks
    assert working.id == "c.m2"
