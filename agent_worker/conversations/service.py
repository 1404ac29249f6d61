"""Serves `uapi.v1.ConversationService` in a worker: messages go to mailboxes, reads to the log."""

import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import conversation_service_pb2_grpc
from agentruntime._proto.uapi.v1 import event_log_pb2 as wire
from agentruntime.intake import PRINCIPAL_KEY
from grpc import aio

from agent_worker.conversations.context import MOST_BYTES
from agent_worker.conversations.log import LogClient
from agent_worker.conversations.mailboxes import Mailboxes
from agent_worker.conversations.message import Elsewhere, Message

_ID = re.compile(r"[ -~]{1,200}")
_ROLES = ("", "user", "assistant", "system")
# An append has 1024 events at most.
_MOST_EARLIER = 1000
# Who calls where nobody said so: no platform is before this worker.
_ANONYMOUS = "anonymous"
# Who sees where an agent's code raised: whoever operates this platform. Its own users ask the gateway.
_OPERATOR = "local"
_ENDED = (proto.MESSAGE_STATUS_COMPLETED, proto.MESSAGE_STATUS_FAILED, proto.MESSAGE_STATUS_CANCELLED)
AioContext = aio.ServicerContext[Any, Any]
Request = proto.SendMessageRequest | proto.StreamMessageRequest


@dataclass(frozen=True, slots=True)
class _Sending:
    """A message that somebody sends."""

    principal: str
    conversation_id: str
    message_id: str
    request: Request

    @classmethod
    def of(cls, request: Request, context: AioContext) -> "_Sending":
        """Raises InvalidArgument, MessageTooLarge."""
        conversation_id = _checked_id(request.conversation_id, "conversation_id") if request.conversation_id else ""
        message_id = _checked_id(request.message_id, "message_id") if request.message_id else ""
        for each in (request.message, *request.earlier):
            if each.role not in _ROLES:
                raise errors.InvalidArgument(f"a message's role is user, assistant or system, not '{each.role}'")
            if each.ByteSize() > MOST_BYTES:
                raise errors.MessageTooLarge(
                    f"the message is longer than {MOST_BYTES} bytes, which is all that one may be"
                )
        if len(request.earlier) > _MOST_EARLIER:
            raise errors.InvalidArgument(f"{len(request.earlier)} earlier messages are more than {_MOST_EARLIER}")
        if not request.message.parts:
            raise errors.InvalidArgument("message.parts is empty; a message has one part at least")
        return cls(
            _principal(context), conversation_id or str(uuid.uuid4()), message_id or str(uuid.uuid4()), request
        )


class ConversationServicer(conversation_service_pb2_grpc.ConversationServiceServicer):
    """Of one worker.

    Args:
        mailboxes: the conversations that it has at hand.
        client: of the log.
    """

    def __init__(self, mailboxes: Mailboxes, client: LogClient) -> None:
        self._mailboxes = mailboxes
        self._client = client

    async def SendMessage(self, request: proto.SendMessageRequest, context: AioContext) -> proto.SendMessageResponse:
        sending = _Sending.of(request, context)
        while True:
            message = await self._post(sending)
            try:
                end = await message.ended()
                break
            except Elsewhere:
                if message.is_stored:
                    end = await self._end_elsewhere(sending, message)
                    break
        if end.HasField("failure"):
            failure = end.failure
            raise status.rebuilt(failure.code, failure.message, failure.reason, failure.metadata)
        return proto.SendMessageResponse(
            conversation_id=sending.conversation_id,
            message_id=sending.message_id,
            reply=end.completion,
            sequence=end.sequence,
        )

    async def StreamMessage(
        self, request: proto.StreamMessageRequest, context: AioContext
    ) -> AsyncIterator[proto.StreamMessageResponse]:
        sending = _Sending.of(request, context)
        async with aclosing(self._events(sending)) as events:
            async for event in events:
                yield proto.StreamMessageResponse(
                    conversation_id=sending.conversation_id, event=_shown(event, sending.principal)
                )

    async def WatchConversation(
        self, request: proto.WatchConversationRequest, context: AioContext
    ) -> AsyncIterator[proto.WatchConversationResponse]:
        principal, conversation_id = _named(request, context)
        if request.follow:
            await self._go_on(principal, conversation_id, request.message_id)
            events = self._client.watch(
                principal, conversation_id, after=request.after_sequence, message_id=request.message_id, lasting=True
            )
        else:
            events = self._client.read(
                principal, conversation_id, after=request.after_sequence, message_id=request.message_id
            )
        async with aclosing(events):
            async for event in events:
                yield proto.WatchConversationResponse(event=_shown(event, principal))

    async def CancelMessage(
        self, request: proto.CancelMessageRequest, context: AioContext
    ) -> proto.CancelMessageResponse:
        principal, conversation_id = _named(request, context)
        mailbox = self._mailboxes.find(principal, conversation_id)
        if mailbox is not None:
            message = mailbox.messages.get(request.message_id) if request.message_id else mailbox.current
            if message is not None:
                runs = message is mailbox.current
                mailbox.cancel(message)
                return proto.CancelMessageResponse(
                    status=proto.MESSAGE_STATUS_RUNNING if runs else proto.MESSAGE_STATUS_PENDING
                )
        asked = wire.LogRequest(cancel=request, principal=principal)
        return (await self._client.ask(asked)).cancel

    async def GetConversation(
        self, request: proto.GetConversationRequest, context: AioContext
    ) -> proto.GetConversationResponse:
        principal, conversation_id = _named(request, context)
        return await self._go_on(principal, conversation_id, request.message_id)

    async def ListConversations(
        self, request: proto.ListConversationsRequest, context: AioContext
    ) -> proto.ListConversationsResponse:
        return (await self._client.ask(wire.LogRequest(list=request, principal=_principal(context)))).list

    async def DeleteConversation(
        self, request: proto.DeleteConversationRequest, context: AioContext
    ) -> proto.DeleteConversationResponse:
        principal, _ = _named(request, context)
        # What runs in it hears of it from the log.
        return (await self._client.ask(wire.LogRequest(delete=request, principal=principal))).delete

    async def _post(self, sending: _Sending) -> Message:
        request, asked = sending.request, not sending.request.message_id
        message = Message(sending.message_id, request.message, copy_context())
        while True:
            mailbox = await self._mailboxes.at(sending.principal, sending.conversation_id)
            if asked or not mailbox.would_disturb(sending.message_id, request.when_busy):
                break
            # One that has ended long ago disturbs nobody by being repeated.
            if known := await self._known(sending):
                message.is_stored, message.first_sequence = True, known.first_sequence
                message.part(Elsewhere())
                return message
            asked = True
        try:
            return mailbox.post(message, request.when_busy, request.earlier)
        except errors.AgentError:
            mailbox.settle()
            raise

    async def _known(self, sending: _Sending) -> proto.MessageInfo | None:
        asked = proto.GetConversationRequest(conversation_id=sending.conversation_id, message_id=sending.message_id)
        try:
            found = await self._client.ask(wire.LogRequest(get=asked, principal=sending.principal))
        except errors.NotFound:
            return None
        return next(iter(found.get.conversation.messages), None)

    async def _events(self, sending: _Sending) -> AsyncGenerator[proto.Event]:
        """Every event of a message, whoever handles it."""
        while True:
            message = await self._post(sending)
            last = message.first_sequence - 1
            try:
                if message.before:
                    async with aclosing(self._read(sending, last)) as before:
                        async for event in before:
                            if event.sequence > message.before:
                                break
                            last = event.sequence
                            yield event
                async with aclosing(message.follow()) as events:
                    async for event in events:
                        last = event.sequence
                        yield event
                return
            except Elsewhere:
                if message.is_stored:
                    last = max(last, message.first_sequence - 1)
                    break
        async with aclosing(self._watch(sending, last)) as elsewhere:
            async for event in elsewhere:
                yield event

    async def _end_elsewhere(self, sending: _Sending, message: Message) -> proto.Event:
        async with aclosing(self._watch(sending, message.first_sequence - 1)) as events:
            async for event in events:
                if event.HasField("completion") or event.HasField("failure"):
                    return event
        raise errors.MessageNotFound(f"message '{sending.message_id}' is not kept any more")

    def _watch(self, sending: _Sending, after: int) -> AsyncGenerator[proto.Event]:
        return self._client.watch(
            sending.principal, sending.conversation_id, after=after, message_id=sending.message_id
        )

    def _read(self, sending: _Sending, after: int) -> AsyncGenerator[proto.Event]:
        return self._client.read(
            sending.principal, sending.conversation_id, after=after, message_id=sending.message_id
        )

    async def _go_on(self, principal: str, conversation_id: str, message_id: str) -> proto.GetConversationResponse:
        """What is known of a conversation; if messages have not ended, they are handled here from now on."""
        asked = proto.GetConversationRequest(conversation_id=conversation_id, message_id=message_id)
        found = (await self._client.ask(wire.LogRequest(get=asked, principal=principal))).get
        if any(each.status not in _ENDED for each in found.conversation.messages):
            self._mailboxes.take_up(principal, conversation_id)
        return found


def _named(request: Any, context: AioContext) -> tuple[str, str]:
    """Whose conversation a request means, and which.

    Raises:
        InvalidArgument: it names none.
    """
    return _principal(context), _checked_id(request.conversation_id, "conversation_id")


def _checked_id(text: str, name: str) -> str:
    if not _ID.fullmatch(text):
        raise errors.InvalidArgument(f"{name} must be of 1 to 200 printable ASCII characters", reason="INVALID_ID")
    return text


def _principal(context: AioContext) -> str:
    return next(
        (str(value) for key, value in context.invocation_metadata() or () if key == PRINCIPAL_KEY), _ANONYMOUS
    )


def _shown(event: proto.Event, principal: str) -> proto.Event:
    """An event as a caller sees it: where an agent's code raised is for those who operate it."""
    if principal == _OPERATOR or not (event.HasField("failure") and event.failure.traceback):
        return event
    shown = proto.Event()
    shown.CopyFrom(event)
    shown.failure.traceback = ""
    return shown
