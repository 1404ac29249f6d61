"""ConversationService for calls that name no agent in their metadata: what is on the log, of all agents.

A caller's own conversations with agents that it may call; others' for those who operate the agent, which is written
down. Messages are the agents' workers' to take.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from agentruntime._proto.uapi.v1 import access_pb2 as access
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import conversation_service_pb2_grpc as conversation_grpc
from agentruntime.errors import AgentNotFound, ConversationNotFound, InvalidArgument
from grpc import aio

from uapi_gateway.access.callers import refusal
from uapi_gateway.access.checks import Checks
from uapi_gateway.access.keys import ALL
from uapi_gateway.access.policy import Caller
from uapi_gateway.conversations.log import EventLog
from uapi_gateway.conversations.sending import shown
from uapi_gateway.conversations.store import Key
from uapi_gateway.kernel.audit import AuditLog
from uapi_gateway.registry import Registry
from uapi_gateway.xds.routes import AGENT_HEADER

_Context = aio.ServicerContext[Any, Any]


class ConversationService(conversation_grpc.ConversationServiceServicer):
    """The service."""

    def __init__(self, log: EventLog, registry: Registry, checks: Checks, audit: AuditLog) -> None:
        self._log = log
        self._registry = registry
        self._checks = checks
        self._audit = audit

    async def SendMessage(self, request: proto.SendMessageRequest, context: _Context) -> proto.SendMessageResponse:
        raise _unnamed()

    async def StreamMessage(
        self, request: proto.StreamMessageRequest, context: _Context
    ) -> AsyncIterator[proto.StreamMessageResponse]:
        raise _unnamed()
        yield  # makes it a generator

    async def WatchConversation(
        self, request: proto.WatchConversationRequest, context: _Context
    ) -> AsyncIterator[proto.WatchConversationResponse]:
        caller, key = await self._admit(request, context, "WatchConversation")
        operates = caller.may(access.ROLE_OPERATE, key.agent)
        events = self._log.watch(key, request.after_sequence, message_id=request.message_id, follow=request.follow)
        async with aclosing(events):
            async for event in events:
                yield proto.WatchConversationResponse(event=shown(event, operates))

    async def CancelMessage(
        self, request: proto.CancelMessageRequest, context: _Context
    ) -> proto.CancelMessageResponse:
        _, key = await self._admit(request, context, "CancelMessage")
        return proto.CancelMessageResponse(status=await self._log.cancel(key, request.message_id))

    async def GetConversation(
        self, request: proto.GetConversationRequest, context: _Context
    ) -> proto.GetConversationResponse:
        _, key = await self._admit(request, context, "GetConversation")
        try:
            found = await self._log.find(key, request.message_id)
        except ConversationNotFound:
            await self._require(key.agent, key.principal)
            raise
        return proto.GetConversationResponse(conversation=found)

    async def ListConversations(
        self, request: proto.ListConversationsRequest, context: _Context
    ) -> proto.ListConversationsResponse:
        caller = self._checks.caller(context)
        agent, whose = request.agent or ALL, None if request.all_principals else caller.principal
        if whose is None:
            if not caller.may(access.ROLE_OPERATE, agent):
                await self._refuse(caller, access.ROLE_OPERATE, agent, "ListConversations", agent)
            await self._record(caller, "ListConversations", agent)
        elif request.agent and not self._sees(caller, agent):
            await self._refuse(caller, access.ROLE_CALL, agent, "ListConversations", agent)
        page = await self._log.list(whose, request.agent, request.page_size, request.page_token)
        if request.agent and not page.conversations:
            await self._require(request.agent, whose)
        # Of agents that it may not call any more, it sees nothing.
        found = [each for each in page.conversations if self._sees(caller, each.agent)]
        return proto.ListConversationsResponse(conversations=found, next_page_token=page.next_token)

    async def DeleteConversation(
        self, request: proto.DeleteConversationRequest, context: _Context
    ) -> proto.DeleteConversationResponse:
        _, key = await self._admit(request, context, "DeleteConversation", always=True)
        try:
            await self._log.delete(key)
        except ConversationNotFound:
            await self._require(key.agent, key.principal)
            raise
        return proto.DeleteConversationResponse()

    async def _require(self, agent: str, principal: str | None) -> None:
        """Conversations stay when their agent goes; but a name that nothing is known of is probably written wrongly.

        Raises:
            AgentNotFound: there is no such agent, and the principal (None: nobody) has a conversation with it.
        """
        if not self._registry.find(agent) and not (await self._log.list(principal, agent, 1)).conversations:
            raise AgentNotFound(agent)

    async def _admit(
        self, request: Any, context: _Context, method: str, *, always: bool = False
    ) -> tuple[Caller, Key]:
        """Who calls, and which conversation it is about; `always` written down, not only of another's.

        Raises:
            InvalidArgument: the request does not say of which agent it is.
            PermissionDenied, Unauthenticated: the caller may not.
        """
        caller = self._checks.caller(context)
        if not request.agent:
            raise InvalidArgument(
                f"name the agent in the request's field 'agent', or in the metadata key {AGENT_HEADER}",
                reason="AGENT_MISSING",
            )
        key = Key(request.principal or caller.principal, request.agent, request.conversation_id)
        others = key.principal != caller.principal
        target = f"{key.agent} {key.principal} {key.conversation_id}"
        role = access.ROLE_OPERATE if others else access.ROLE_CALL
        if not (caller.may(role, key.agent) if others else self._sees(caller, key.agent)):
            await self._refuse(caller, role, key.agent, method, target)
        if others or always:
            await self._record(caller, method, target)
        return caller, key

    def _sees(self, caller: Caller, agent: str) -> bool:
        """Whether its own conversations with the agent are its to see."""
        return caller.may(access.ROLE_OPERATE, agent) or self._checks.sees(caller, access.ROLE_CALL, agent)

    async def _refuse(self, caller: Caller, role: int, agent: str, method: str, target: str) -> None:
        error = refusal(caller, role, (agent,))
        await self._audit.record(
            principal=caller.principal, action=f"ConversationService/{method}", target=target,
            outcome="denied", detail=error.message,
        )  # fmt: skip
        raise error

    async def _record(self, caller: Caller, method: str, target: str) -> None:
        await self._audit.record(
            principal=caller.principal, action=f"ConversationService/{method}", target=target, outcome="allowed"
        )


def _unnamed() -> InvalidArgument:
    return InvalidArgument(
        f"a message is for an agent: name it in the metadata key {AGENT_HEADER}", reason="AGENT_MISSING"
    )
