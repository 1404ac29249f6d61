"""What the APIs over HTTP stand on: who asks, who may, the sender and the log."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.errors import InvalidArgument
from starlette.requests import Request

from uapi_gateway.access.callers import caller_of
from uapi_gateway.access.policy import Caller, Policy, may_call
from uapi_gateway.conversations.sending import Sender
from uapi_gateway.conversations.store import Key, Page
from uapi_gateway.registry import Agent, Registry


class Log(Protocol):
    """What is needed of the event log (`EventLog`)."""

    def watch(
        self, key: Key, after: int = 0, *, message_id: str = "", follow: bool = False
    ) -> AsyncIterator[proto.Event]:
        """Events after a sequence number."""

    async def read(
        self, key: Key, after: int = 0, limit: int = 0, *, message_id: str = "", backwards: bool = False
    ) -> tuple[Sequence[proto.Event], bool]:
        """Events after a sequence number, and whether there are more."""

    async def find(self, key: Key, message_id: str = "") -> proto.Conversation:
        """A conversation with that message, or with all that have not ended."""

    async def list(self, principal: str | None, agent: str, page_size: int = 0, page_token: str = "") -> Page:
        """A principal's conversations with an agent, those that changed last first."""

    async def cancel(self, key: Key, message_id: str = "") -> proto.MessageStatus.ValueType:
        """Asks for the end of a message."""

    async def delete(self, key: Key) -> None:
        """Deletes a conversation."""


@dataclass(frozen=True)
class Core:
    """Args:
    sender: sends messages to agents.
    log: has what was said.
    registry: the agents.
    policy: who may call what, now.
    """

    sender: Sender
    log: Log
    registry: Registry
    policy: Callable[[], Policy]

    def caller(self, request: Request) -> Caller:
        """Whom a request comes from, as Envoy says.

        Raises:
            InvalidArgument: the request says that it comes from somebody else, or is about somebody else's.
        """
        caller = caller_of(request.headers.items(), self.policy())
        if request.query_params.get("principal", caller.principal) != caller.principal:
            raise InvalidArgument(
                f"you are {caller.principal}, and over HTTP conversations are the caller's own; operators read "
                "others' by `agent conversations show AGENT ID --principal PRINCIPAL`"
            )
        return caller

    def agents(self, caller: Caller) -> list[Agent]:
        """The agents that a caller may call, by name."""
        demands = self.policy().demands
        every = sorted(self.registry.agents(), key=lambda agent: agent.agent_id)
        return [agent for agent in every if may_call(caller, agent.agent_id, demands.get(agent.agent_id))]

    def key(self, request: Request, agent: str, conversation_id: str) -> Key:
        """A conversation of the caller's own.

        Raises:
            PermissionDenied, Unauthenticated: the caller may not call the agent.
        """
        caller = self.caller(request)
        return Key(caller.principal, self.sender.allow(caller, agent), conversation_id)
