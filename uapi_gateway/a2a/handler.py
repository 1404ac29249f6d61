"""What A2A's methods do, whichever way they are called: messages by the Sender, tasks out of the event log.

Nothing is kept here. A task is found by its id alone, whoever began it at which door, and is read from its events.
"""

import asyncio
import contextlib
import secrets
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import wraps
from typing import Any, NoReturn

from a2a.server.context import ServerCallContext
from a2a.server.request_handlers.request_handler import RequestHandler
from a2a.types import a2a_pb2 as a2a
from a2a.utils.errors import (
    A2AError,
    ExtendedAgentCardNotConfiguredError,
    InternalError,
    InvalidParamsError,
    PushNotificationNotSupportedError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)
from a2a.utils.proto_utils import validate_proto_required_fields
from agentruntime import errors, log
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto

from uapi_gateway.a2a import identifiers, listing
from uapi_gateway.a2a.core import Reads, Sends
from uapi_gateway.a2a.failures import Refused, translated
from uapi_gateway.a2a.tasks import TaskView, Update, message_in
from uapi_gateway.access.policy import Caller
from uapi_gateway.conversations.store import Key

_log = log.get("uapi_gateway.a2a")
# Under which a call is found in its context.
CALL = "call"
# How long a task that is canceled may take to end before it is told as it is; agents have 5 s (`cancel_grace`).
_CANCEL_S = 8.0
Event = a2a.Task | a2a.Message | Update


@dataclass
class Call:
    """One call, whichever way it came."""

    caller: Caller
    # An agent's or a worker's name, as the call has it.
    agent: str
    # Why it was refused, where A2A has no name for that.
    refused: errors.AgentError | None = None


def _told(method: Any) -> Any:
    """The method, with our errors told as A2A has them, and what is not foreseen hidden behind a request id."""

    @wraps(method)
    async def answered(self: Any, params: Any, context: ServerCallContext) -> Any:
        with _telling(context):
            validate_proto_required_fields(params)
            return await method(self, params, context.state[CALL])

    return answered


def _streamed(method: Any) -> Any:
    """The same of a method that streams."""

    @wraps(method)
    async def answered(self: Any, params: Any, context: ServerCallContext) -> AsyncGenerator[Event, None]:
        with _telling(context):
            validate_proto_required_fields(params)
            async with contextlib.aclosing(method(self, params, context.state[CALL])) as events:
                async for event in events:
                    yield event

    return answered


@contextlib.contextmanager
def _telling(context: ServerCallContext) -> Any:
    try:
        yield
    except A2AError:
        raise
    except errors.AgentError as error:
        told = translated(error)
        if isinstance(told, Refused):
            context.state[CALL].refused = error
        raise told from error
    except Exception as error:
        request_id = secrets.token_hex(8)
        _log.error("unforeseen error", request_id=request_id, exc_info=error)
        raise InternalError(f"internal error, request id {request_id}") from error


class Handler(RequestHandler):
    """Args:
    sender: sends messages, and says who may call whom.
    events: the event log.
    """

    def __init__(self, sender: Sends, events: Reads) -> None:
        self._sender = sender
        self._events = events

    @_told
    async def on_message_send(self, params: a2a.SendMessageRequest, call: Call) -> a2a.Task | a2a.Message:
        request = await self._request(params, call)
        view = TaskView(request.conversation_id, request.message_id)
        async with contextlib.aclosing(self._sender.stream(call.caller, call.agent, request)) as responses:
            async for response in responses:
                view.add(response.event)
                if params.configuration.return_immediately and view.begun and view.sequence:
                    break
        if view.sequence:
            return view.task(_history_length(params.configuration))
        if view.state == a2a.TASK_STATE_COMPLETED:
            return view.answer()
        return view.task(0)

    @_streamed
    async def on_message_send_stream(self, params: a2a.SendMessageRequest, call: Call) -> AsyncGenerator[Event, None]:
        request = await self._request(params, call)
        view = TaskView(request.conversation_id, request.message_id)
        async with contextlib.aclosing(self._sender.stream(call.caller, call.agent, request)) as responses:
            async for response in responses:
                updates = view.add(response.event)
                if response.event.HasField("message"):
                    yield view.task(_history_length(params.configuration))
                for update in updates:
                    yield update

    @_told
    async def on_get_task(self, params: a2a.GetTaskRequest, call: Call) -> a2a.Task:
        history = _history_length(params)
        return (await self._view(*self._located(call, params.id))).task(history)

    @_streamed
    async def on_subscribe_to_task(
        self, params: a2a.SubscribeToTaskRequest, call: Call
    ) -> AsyncGenerator[Event, None]:
        key, message_id = self._located(call, params.id)
        view = await self._view(key, message_id)
        if view.ended:
            raise UnsupportedOperationError(f"task {params.id} has ended, nothing more comes of it; get it instead")
        yield view.task()
        async for event in self._followed(key, message_id, view):
            for update in view.add(event):
                yield update

    @_told
    async def on_cancel_task(self, params: a2a.CancelTaskRequest, call: Call) -> a2a.Task:
        key, message_id = self._located(call, params.id)
        view = await self._view(key, message_id)
        if view.ended:
            raise TaskNotCancelableError(f"task {params.id} has ended already")
        await self._events.cancel(key, message_id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CANCEL_S):
                async for event in self._followed(key, message_id, view):
                    view.add(event)
        return view.task()

    @_told
    async def on_list_tasks(self, params: a2a.ListTasksRequest, call: Call) -> a2a.ListTasksResponse:
        agent = self._sender.admit(call.caller, call.agent)
        return await listing.tasks(self._events, call.caller.principal, agent.agent_id, params)

    @_told
    async def on_get_extended_agent_card(self, _params: Any, _call: Call) -> NoReturn:
        raise ExtendedAgentCardNotConfiguredError("the agent's card says all that there is to say")

    @_told
    async def on_create_task_push_notification_config(self, _params: Any, _call: Call) -> NoReturn:
        raise _no_push()

    @_told
    async def on_get_task_push_notification_config(self, _params: Any, _call: Call) -> NoReturn:
        raise _no_push()

    @_told
    async def on_list_task_push_notification_configs(self, _params: Any, _call: Call) -> NoReturn:
        raise _no_push()

    @_told
    async def on_delete_task_push_notification_config(self, _params: Any, _call: Call) -> NoReturn:
        raise _no_push()

    async def _request(self, params: a2a.SendMessageRequest, call: Call) -> proto.StreamMessageRequest:
        """What is sent for a message."""
        message = params.message
        _history_length(params.configuration)
        if params.configuration.HasField("task_push_notification_config"):
            raise _no_push()
        said = message_in(message, params.metadata)
        if message.task_id:
            await self._refuse_to_go_on(message, call)
        return proto.StreamMessageRequest(
            conversation_id=message.context_id or str(uuid.uuid4()), message_id=message.message_id, message=said
        )

    async def _refuse_to_go_on(self, message: a2a.Message, call: Call) -> None:
        """A task takes one message."""
        key, message_id = self._located(call, message.task_id)
        await self._view(key, message_id)
        if message.context_id not in ("", key.conversation_id):
            raise InvalidParamsError(f"task {message.task_id} does not belong to context {message.context_id}")
        raise UnsupportedOperationError(
            "a task takes one message: send the next one with its contextId and without a taskId"
        )

    def _located(self, call: Call, task_id: str) -> tuple[Key, str]:
        """Where a task is on the log, if there is one of that id."""
        agent = self._sender.admit(call.caller, call.agent)
        found = identifiers.parse(task_id)
        if found is None:
            raise _unknown(task_id)
        conversation_id, message_id = found
        return Key(call.caller.principal, agent.agent_id, conversation_id), message_id

    async def _view(self, key: Key, message_id: str) -> TaskView:
        view = TaskView(key.conversation_id, message_id)
        found = await self._events.find(key, message_id)
        first = next((info.first_sequence for info in found.messages if info.message_id == message_id), 0)
        if not first:
            raise _unknown(view.id)
        watched: Any = self._events.watch(key, first - 1, message_id=message_id)
        async with contextlib.aclosing(watched) as events:
            async for event in events:
                view.add(event)
        return view

    async def _followed(self, key: Key, message_id: str, view: TaskView) -> AsyncGenerator[proto.Event, None]:
        watched: Any = self._events.watch(key, view.sequence, message_id=message_id, follow=True)
        async with contextlib.aclosing(watched) as events:
            async for event in events:
                yield event


def _history_length(asked: Any) -> int | None:
    """How many messages of its history a task is shown with; None for all."""
    if not asked.HasField("history_length"):
        return None
    if asked.history_length < 0:
        raise InvalidParamsError(f"historyLength is {asked.history_length}; it must not be negative")
    return int(asked.history_length)


def _unknown(task_id: str) -> TaskNotFoundError:
    return TaskNotFoundError(f"there is no task {task_id}")


def _no_push() -> PushNotificationNotSupportedError:
    return PushNotificationNotSupportedError("nothing is pushed: subscribe to the task, or get it now and then")
