"""Sends a message to a conversation on a caller's behalf, and tells all that comes of it, whatever breaks meanwhile.

Every door of the gateway sends this way: through Envoy to a worker, and on from the log when the worker's stream
breaks. What has been told is never told again, and nothing is left out.
"""

import asyncio
import contextlib
import itertools
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from agentruntime import errors, status, trace
from agentruntime._proto.uapi.v1 import access_pb2 as access
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import conversation_service_pb2_grpc as conversation_grpc
from grpc import aio

from uapi_gateway.access import headers
from uapi_gateway.access.callers import refusal
from uapi_gateway.access.policy import Caller, Policy, may_call
from uapi_gateway.conversations import plain
from uapi_gateway.conversations.store import Key
from uapi_gateway.registry import Agent, Registry
from uapi_gateway.xds.routes import AGENT_HEADER, CONVERSATION_HEADER

SERVICE = proto.DESCRIPTOR.services_by_name["ConversationService"].full_name
# Of a conversation or a message: 1 to 200 printable ASCII characters.
_ID = re.compile(r"[ -~]{1,200}")
# A message that never reached the log is sent so often; Envoy and the relay have tried and waited, each time.
_ATTEMPTS = 8
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
# Nobody was reached, after all the waiting that there is: an answer.
_FINAL = (errors.AgentNotReady, errors.CircuitOpen, errors.GatewayOverloaded, errors.StoreUnavailable)
# How a call ends whose worker, or the way there, is lost.
_LOST = (errors.Unavailable, errors.Cancelled)


class Log(Protocol):
    """What is needed of the event log."""

    def watch(
        self, key: Key, after: int = 0, *, message_id: str = "", follow: bool = False
    ) -> AsyncIterator[proto.Event]:
        """Events after a sequence number, of one message; with `follow` until it has ended."""

    async def find(self, key: Key, message_id: str = "") -> proto.Conversation:
        """A conversation, with that message if it is there."""


@dataclass(frozen=True)
class Usage:
    """What a reply has cost, as far as the agent says; it does so in its reply's metadata, by these names."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Reply:
    """What came of a message."""

    conversation_id: str
    message_id: str
    message: proto.ChatMessage
    # Of the completion; 0 where no conversation is kept.
    sequence: int

    @property
    def usage(self) -> Usage:
        said = self.message.metadata
        return Usage(*(_count(said.get(name, "")) for name in ("prompt_tokens", "completion_tokens")))


def converses(agent: Agent) -> bool:
    """Whether it has an `on_message`."""
    return SERVICE in agent.services


def ended(event: proto.Event) -> bool:
    """Whether it is the last one of its message."""
    return event.WhichOneof("content") in ("completion", "failure")


def failure_of(failure: proto.Failure) -> errors.AgentError:
    """The error that a message has failed with."""
    return status.rebuilt(failure.code, failure.message, failure.reason, failure.metadata)


def checked_id(text: str, what: str) -> str:
    """An id that a caller chose; `what` names it.

    Raises:
        InvalidArgument: it is none.
    """
    if not _ID.fullmatch(text):
        raise errors.InvalidArgument(
            f"the {what} must be of 1 to 200 printable ASCII characters", reason="INVALID_ID"
        )
    return text


class Sender:
    """Args:
    registry: the agents.
    policy: who may call what, now.
    log: where messages are written.
    through: a channel to Envoy's inner listener (`inner.channel`).
    """

    def __init__(self, registry: Registry, policy: Callable[[], Policy], log: Log, through: aio.Channel) -> None:
        self._registry = registry
        self._policy = policy
        self._log = log
        self._through = through

    def allow(self, caller: Caller, name: str) -> str:
        """The id of an agent that a caller may call, be it there or not: conversations stay when an agent goes.

        Raises:
            PermissionDenied, Unauthenticated: the caller may not.
        """
        found = self._registry.find(name)
        agent_id = found.agent.agent_id if found else name
        if not may_call(caller, agent_id, self._policy().demands.get(agent_id)):
            raise refusal(caller, access.ROLE_CALL, (agent_id,))
        return agent_id

    def admit(self, caller: Caller, name: str) -> Agent:
        """The agent of a name, for a caller who may call it.

        Raises:
            AgentNotFound: there is none.
            PermissionDenied, Unauthenticated: the caller may not.
        """
        return self._registry.require(self.allow(caller, name)).agent

    async def stream(
        self,
        caller: Caller,
        agent: str,
        request: proto.StreamMessageRequest,
        *,
        timeout_s: float | None = None,
        after: int = 0,
    ) -> AsyncGenerator[proto.StreamMessageResponse, None]:
        """Sends a message, and gives its events from its own on; the last is its completion or its failure.

        An agent without `on_message` that generates text is given the message as its prompt, and nothing is kept: the
        events have no sequence numbers then. A caller who stops reading does not end the message.

        Args:
            caller: on whose behalf, and whose conversation (`callers.caller_of`).
            agent: its name.
            request: the message. Ids that are empty are made; to repeat it safely, choose the message's.
            timeout_s: how long the caller waits in all; the message goes on after that.
            after: the message's events up to this sequence number have been told, and are not told again.

        Raises:
            AgentError: it was refused, or never reached the agent; or the time was over (DeadlineExceeded).
        """
        target = self.admit(caller, agent)
        asked = _complete(request)
        deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        operates = caller.may(access.ROLE_OPERATE, target.agent_id)
        if converses(target):
            key = Key(caller.principal, target.agent_id, asked.conversation_id)
            events = self._converse(key, asked, deadline, after)
        else:
            metadata = _metadata(caller.principal, target.agent_id)
            events = plain.generate(self._through, target, asked, metadata, timeout_s)
        async with contextlib.aclosing(_in_time(events, deadline, asked)) as timely:
            async for event in timely:
                yield proto.StreamMessageResponse(conversation_id=asked.conversation_id, event=shown(event, operates))

    async def collect(
        self, caller: Caller, agent: str, request: proto.StreamMessageRequest, *, timeout_s: float | None = None
    ) -> Reply:
        """The same for those who only want the reply.

        Raises:
            AgentError: as `stream`, and what the message failed with.
        """
        async with contextlib.aclosing(self.stream(caller, agent, request, timeout_s=timeout_s)) as responses:
            async for response in responses:
                event = response.event
                if event.HasField("failure"):
                    raise failure_of(event.failure)
                if event.HasField("completion"):
                    return Reply(response.conversation_id, event.message_id, event.completion, event.sequence)
        raise AssertionError("a stream ends with a completion, a failure or an error")

    async def _converse(
        self, key: Key, request: proto.StreamMessageRequest, deadline: float | None, after: int
    ) -> AsyncGenerator[proto.Event, None]:
        # Of a message that is not there, nothing can have been told.
        told = after if after and await self._knows(key, request.message_id) else 0
        if not told:
            async with contextlib.aclosing(self._sent(key, request, deadline)) as events:
                async for event in events:
                    told = event.sequence
                    yield event
                    if ended(event):
                        return
        async with contextlib.aclosing(self._from_log(key, request.message_id, told)) as events:
            async for event in events:
                yield event

    async def _sent(
        self, key: Key, request: proto.StreamMessageRequest, deadline: float | None
    ) -> AsyncGenerator[proto.Event, None]:
        """Events as the worker tells them, until the last one or a break after which the log has the message."""
        told = False
        for attempt in itertools.count(1):
            lost: errors.AgentError = errors.Unavailable("the worker ended during the call", reason="WORKER_LOST")
            try:
                async with contextlib.aclosing(self._call(key, request, deadline)) as events:
                    async for event in events:
                        told = True
                        yield event
            except errors.AgentError as error:
                lost = error
            if told or (_may_be_logged(lost) and await self._is_logged(key, request.message_id)):
                return
            if attempt == _ATTEMPTS or not isinstance(lost, _LOST) or isinstance(lost, _FINAL):
                raise lost
            await asyncio.sleep(_pause_s(attempt))

    async def _call(
        self, key: Key, request: proto.StreamMessageRequest, deadline: float | None
    ) -> AsyncGenerator[proto.Event, None]:
        stub: conversation_grpc.ConversationServiceAsyncStub = conversation_grpc.ConversationServiceStub(
            self._through
        )
        metadata = [*_metadata(key.principal, key.agent), (CONVERSATION_HEADER, key.conversation_id)]
        left_s = None if deadline is None else max(0.0, deadline - asyncio.get_running_loop().time())
        call = stub.StreamMessage(request, metadata=metadata, timeout=left_s)
        try:
            async for response in call:
                yield response.event
        except aio.AioRpcError as error:
            raise status.decode(error) from error
        finally:
            call.cancel()

    async def _knows(self, key: Key, message_id: str) -> bool:
        """As `_is_logged`, but nothing was sent, so that nobody needs to wait."""
        try:
            return bool((await self._log.find(key, message_id)).messages)
        except errors.NotFound:
            return False

    async def _is_logged(self, key: Key, message_id: str) -> bool:
        return bool((await self._found(key, message_id)).messages)

    async def _found(self, key: Key, message_id: str) -> proto.Conversation:
        """What the log has of a message."""
        for attempt in itertools.count(1):
            try:
                return await self._log.find(key, message_id)
            except errors.NotFound:
                return proto.Conversation()
            except errors.Unavailable:
                # Nobody can say before the log is back, and it comes back.
                await asyncio.sleep(_pause_s(attempt))
        raise AssertionError("never reached")

    async def _from_log(self, key: Key, message_id: str, told: int) -> AsyncGenerator[proto.Event, None]:
        for attempt in itertools.count(1):
            try:
                watched: Any = self._log.watch(key, told, message_id=message_id, follow=True)
                async with contextlib.aclosing(watched) as events:
                    async for event in events:
                        told = event.sequence
                        yield event
                        if ended(event):
                            return
                if any(info.last_sequence for info in (await self._found(key, message_id)).messages):
                    # Its end had been told before.
                    return
            except errors.Unavailable:
                # As above.
                pass
            await asyncio.sleep(_pause_s(attempt))


def _may_be_logged(lost: errors.AgentError) -> bool:
    """Whether a message can be on the log whose call has ended so; others were refused."""
    if isinstance(lost, errors.StoreUnavailable):
        # A worker that cannot open a conversation has put nothing into it.
        return False
    return isinstance(lost, (*_LOST, errors.Internal)) or type(lost) is errors.AgentError


def shown(event: proto.Event, operates: bool) -> proto.Event:
    """An event as a caller sees it: the agent's code is for those who operate the agent."""
    if operates or not event.failure.traceback:
        return event
    # Others watch the same one.
    without = proto.Event()
    without.CopyFrom(event)
    without.failure.traceback = ""
    return without


def _complete(request: proto.StreamMessageRequest) -> proto.StreamMessageRequest:
    """The same with ids."""
    asked = proto.StreamMessageRequest()
    asked.CopyFrom(request)
    asked.conversation_id = checked_id(request.conversation_id or str(uuid.uuid4()), "conversation's id")
    asked.message_id = checked_id(request.message_id or str(uuid.uuid4()), "message's id")
    return asked


def _metadata(principal: str, agent: str) -> list[tuple[str, str]]:
    # Whether the caller may is decided; Envoy, which gets the call without the credential, could not.
    said = [(AGENT_HEADER, agent), (headers.PRINCIPAL, principal), (headers.GRANTED, "1")]
    if context := trace.current.get():
        said.append((trace.HEADER, context.header()))
    return said


async def _in_time(
    events: AsyncGenerator[proto.Event, None], deadline: float | None, request: proto.StreamMessageRequest
) -> AsyncGenerator[proto.Event, None]:
    taken = False
    async with contextlib.aclosing(events) as waited:
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    event = await anext(waited, None)
            except (TimeoutError, errors.DeadlineExceeded):
                became = "goes on" if taken else "may have been taken, or not"
                raise errors.DeadlineExceeded(
                    f"there was no reply in time; message {request.message_id} {became}, send it again by that id to "
                    "wait for it",
                    metadata={"conversation_id": request.conversation_id, "message_id": request.message_id},
                ) from None
            if event is None:
                return
            taken = True
            yield event


def _pause_s(attempt: int) -> float:
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (attempt - 1))


def _count(text: str) -> int:
    return int(text) if text.isdecimal() else 0
