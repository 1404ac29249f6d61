"""Lists tasks: those of the conversation that changed last first, and in each the newest first."""

import base64
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from a2a.types import a2a_pb2 as a2a
from a2a.utils.errors import InvalidParamsError
from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto

from uapi_gateway.a2a.core import Reads
from uapi_gateway.a2a.tasks import TaskView
from uapi_gateway.conversations.store import Course, Key

# A2A's own (specification, "List Tasks").
_PAGE, _LARGEST_PAGE = 50, 100
# A page ends early with so many bytes of tasks, or when so many were read for it: with the task, or those that were
# read together, that were too much, so that the next page goes on behind them.
_MOST_BYTES, _MOST_READ_BYTES = 2**22, 2**26
# What to find a conversation counts as, however little was said in it.
_CONVERSATION_BYTES = 2**16
# Read together at least, for those that are not asked for.
_AT_A_TIME = 16
# What a state is where conversations are kept; none of others is.
_STATUSES: Mapping[int, Sequence["proto.MessageStatus.ValueType"]] = {
    a2a.TASK_STATE_SUBMITTED: (proto.MESSAGE_STATUS_PENDING,),
    # One that was interrupted waits again, and is a working task still.
    a2a.TASK_STATE_WORKING: (proto.MESSAGE_STATUS_RUNNING, proto.MESSAGE_STATUS_PENDING),
    a2a.TASK_STATE_COMPLETED: (proto.MESSAGE_STATUS_COMPLETED,),
    a2a.TASK_STATE_FAILED: (proto.MESSAGE_STATUS_FAILED,),
    a2a.TASK_STATE_CANCELED: (proto.MESSAGE_STATUS_CANCELLED,),
}


async def tasks(log: Reads, principal: str, agent: str, params: a2a.ListTasksRequest) -> a2a.ListTasksResponse:
    """A page of a caller's tasks at an agent.

    Without a context, or with a time, their whole number would have to be counted: what is told is how many there are
    up to the end of this page, and one more where others follow.

    Raises:
        InvalidParamsError: the size is none, or the token none of ours.
        AgentError: as the log has it.
    """
    page = _Page(_page_size(params), *parsed(params.page_token))
    if params.status and params.status not in _STATUSES:
        return page.response()
    async with contextlib.aclosing(_conversations(log, principal, agent, params.context_id, page.where)) as found:
        async for place, conversation in found:
            if _changed_ns(conversation) < params.status_timestamp_after.ToNanoseconds():
                break
            key = Key(principal, agent, conversation.conversation_id)
            # One that was deleted or cut meanwhile is not there.
            with contextlib.suppress(errors.ConversationNotFound, errors.EventsExpired):
                await _add(log, key, place, params, page)
            if page.token:
                break
    return page.response()


@dataclass
class _Page:
    """Tasks, and how far they go.

    Args:
        size: as many tasks as there may be.
        where: the token of the conversation that it begins with,
        before: the event in it before which its first task began; 0 for the newest,
        passed: and how many tasks there were on the pages before.
    """

    size: int
    where: str
    before: int
    passed: int
    tasks: list[a2a.Task] = field(default_factory=list)
    tasks_bytes: int = 0
    read_bytes: int = 0
    # Of the next one; then as many tasks follow as is known.
    token: str = ""
    more: int = 0

    @property
    def full(self) -> bool:
        return len(self.tasks) == self.size or self.tasks_bytes >= _MOST_BYTES

    def add(self, task: a2a.Task) -> None:
        self.tasks.append(task)
        self.tasks_bytes += task.ByteSize()

    def end(self, place: str, before: int, more: int = 1) -> None:
        """The next page begins there."""
        self.token, self.more = _token(place, before, self.passed + len(self.tasks)), more

    def response(self) -> a2a.ListTasksResponse:
        total = self.passed + len(self.tasks) + self.more
        return a2a.ListTasksResponse(
            tasks=self.tasks, page_size=self.size, total_size=total, next_page_token=self.token
        )


async def _add(log: Reads, key: Key, place: str, params: a2a.ListTasksRequest, page: _Page) -> None:
    """Adds tasks of a conversation, until there are no more or the page ends."""
    before = page.before if place == page.where else 0
    statuses = _STATUSES[params.status] if params.status else ()
    counted = params.context_id and not params.HasField("status_timestamp_after")
    found_bytes = _CONVERSATION_BYTES
    while page.read_bytes < _MOST_READ_BYTES:
        limit = max(page.size + 1 - len(page.tasks), _AT_A_TIME)
        read = await log.messages(key, before, limit, statuses=statuses)
        for number, course in enumerate(read.courses):
            if page.read_bytes >= _MOST_READ_BYTES:
                break
            view, event_bytes = await _view(log, key, course, artifacts=params.include_artifacts)
            page.read_bytes += event_bytes
            # What was deleted since has no message.
            if view.begun and _asked_for(view, params):
                if page.full:
                    page.end(place, course.info.first_sequence + 1, read.count - number if counted else 1)
                    return
                page.add(view.task(_history(params)))
            before = course.info.first_sequence
        else:
            page.read_bytes += found_bytes
            found_bytes = 0
            if read.count == len(read.courses):
                return
    page.end(place, before)


async def _view(log: Reads, key: Key, course: Course, *, artifacts: bool) -> tuple[TaskView, int]:
    """A task, and how many bytes were read for it."""
    info = course.info
    view = TaskView(key.conversation_id, info.message_id, artifacts=artifacts)
    if course.last is not None and (not artifacts or course.last.HasField("completion")):
        # All of the reply is in the completion.
        for event in (course.first, course.last):
            view.add(event)
        return view, course.first.ByteSize() + course.last.ByteSize()
    read_bytes = 0
    # What was said so far is between them.
    watched: Any = log.watch(key, info.first_sequence - 1, message_id=info.message_id)
    async with contextlib.aclosing(watched) as events:
        async for event in events:
            view.add(event)
            read_bytes += event.ByteSize()
    return view, read_bytes


async def _conversations(
    log: Reads, principal: str, agent: str, context_id: str, token: str
) -> AsyncGenerator[tuple[str, proto.Conversation], None]:
    """Conversations, each with the token of the page that it is."""
    if context_id:
        with contextlib.suppress(errors.ConversationNotFound):
            yield token, await log.find(Key(principal, agent, context_id))
        return
    while True:
        page = await log.list(principal, agent, 1, token)
        for conversation in page.conversations:
            yield token, conversation
        if not page.next_token:
            return
        token = page.next_token


def _asked_for(view: TaskView, params: a2a.ListTasksRequest) -> bool:
    if params.status and view.state != params.status:
        return False
    return view.changed_ns >= params.status_timestamp_after.ToNanoseconds()


def _changed_ns(conversation: proto.Conversation) -> int:
    return int(conversation.changed_at.ToNanoseconds())


def _history(params: a2a.ListTasksRequest) -> int | None:
    return params.history_length if params.HasField("history_length") else None


def _page_size(params: a2a.ListTasksRequest) -> int:
    if not params.HasField("page_size"):
        return _PAGE
    if not 1 <= params.page_size <= _LARGEST_PAGE:
        raise InvalidParamsError(f"pageSize is {params.page_size}; it must be from 1 to {_LARGEST_PAGE}")
    return params.page_size


def _token(where: str, before: int, passed: int) -> str:
    return base64.urlsafe_b64encode(json.dumps([where, before, passed]).encode()).decode()


def parsed(token: str) -> tuple[str, int, int]:
    """The token of the conversation to go on with, the event in it before which its next task began, and how many
    tasks were shown."""
    if not token:
        return "", 0, 0
    try:
        read = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        read = None
    match read:
        case [str(where), int(before), int(passed)] if 0 <= before < 2**63 and 0 <= passed < 2**30:
            return where, before, passed
    raise InvalidParamsError("pageToken is none of this platform's; begin without one")
