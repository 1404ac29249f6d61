"""Lists tasks: those of the conversation that changed last first, and in each the newest first."""

import base64
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

from a2a.types import a2a_pb2 as a2a
from a2a.utils.errors import InvalidParamsError
from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto

from uapi_gateway.a2a.core import Reads
from uapi_gateway.a2a.tasks import TaskView
from uapi_gateway.conversations.store import Key

# A2A's own (specification, "List Tasks").
_PAGE, _LARGEST_PAGE = 50, 100
# A page ends early with so many bytes of tasks, or when so many were read for it: with the task, or the conversation,
# that was too much, so that the next page goes on behind it.
_MOST_BYTES, _MOST_READ_BYTES = 2**22, 2**26
# What to find a conversation counts as, however little was said in it.
_CONVERSATION_BYTES = 2**16


async def tasks(log: Reads, principal: str, agent: str, params: a2a.ListTasksRequest) -> a2a.ListTasksResponse:
    """A page of a caller's tasks at an agent.

    Without a context, their whole number would have to be counted: what is told is how many there are up to the end
    of this page, and one more where others follow.

    Raises:
        InvalidParamsError: the size is none, or the token none of ours.
        AgentError: as the log has it.
    """
    size = _page_size(params)
    where, passed, before = parsed(params.page_token)
    found: list[a2a.Task] = []
    read_bytes = found_bytes = 0
    async with contextlib.aclosing(_conversations(log, principal, agent, params.context_id, where)) as pages:
        async for page_token, conversation in pages:
            if _changed_ns(conversation) < params.status_timestamp_after.ToNanoseconds():
                break
            if read_bytes >= _MOST_READ_BYTES:
                return _response(found, size, before + len(found) + 1, _token(page_token, 0, before + len(found)))
            views, event_bytes = await _views(log, principal, agent, conversation, params)
            read_bytes += event_bytes + _CONVERSATION_BYTES
            wanted = [view for view in views if _asked_for(view, params)]
            skipped = passed if page_token == where else 0
            for number, view in enumerate(wanted[skipped:], start=skipped):
                if len(found) == size or found_bytes >= _MOST_BYTES:
                    token = _token(page_token, number, before + len(found))
                    more = len(wanted) - number if params.context_id else 1
                    return _response(found, size, before + len(found) + more, token)
                found.append(view.task(_history(params)))
                found_bytes += found[-1].ByteSize()
    return _response(found, size, before + len(found), "")


def _response(found: list[a2a.Task], size: int, total: int, token: str) -> a2a.ListTasksResponse:
    return a2a.ListTasksResponse(tasks=found, page_size=size, total_size=total, next_page_token=token)


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


async def _views(
    log: Reads, principal: str, agent: str, conversation: proto.Conversation, params: a2a.ListTasksRequest
) -> tuple[list[TaskView], int]:
    """Its tasks, the newest first, and how many bytes were read for them."""
    key = Key(principal, agent, conversation.conversation_id)
    views: dict[str, TaskView] = {}
    read_bytes = 0
    watched: Any = log.watch(key, max(0, conversation.first_sequence - 1))
    # One that was deleted or cut meanwhile is not there.
    with contextlib.suppress(errors.ConversationNotFound, errors.EventsExpired):
        async with contextlib.aclosing(watched) as events:
            async for event in events:
                read_bytes += event.ByteSize()
                if event.HasField("message"):
                    views[event.message_id] = TaskView(
                        key.conversation_id, event.message_id, artifacts=params.include_artifacts
                    )
                if event.message_id in views:
                    views[event.message_id].add(event)
    return list(reversed(views.values())), read_bytes


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


def _token(where: str, passed: int, before: int) -> str:
    return base64.urlsafe_b64encode(json.dumps([where, passed, before]).encode()).decode()


def parsed(token: str) -> tuple[str, int, int]:
    """The token of the conversation to go on with, how many of its tasks were shown, and how many in all."""
    if not token:
        return "", 0, 0
    try:
        read = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        read = None
    match read:
        case [str(where), int(passed), int(before)] if 0 <= passed < 2**31 and 0 <= before < 2**30:
            return where, passed, before
    raise InvalidParamsError("pageToken is none of this platform's; begin without one")
