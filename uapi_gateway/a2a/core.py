"""What A2A stands on; no word of its SDK is here, so that the gateway can begin without it."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto

from uapi_gateway.access.policy import Caller, Policy
from uapi_gateway.conversations.store import Courses, Key, Page
from uapi_gateway.registry import Agent, Registry

# Where an agent's card is (RFC 8615).
CARD_PATH = "/.well-known/agent-card.json"


class Sends(Protocol):
    """What is needed of the Sender."""

    def admit(self, caller: Caller, name: str) -> Agent:
        """The agent of a name, for a caller who may call it."""

    def stream(
        self, caller: Caller, agent: str, request: proto.StreamMessageRequest
    ) -> AsyncGenerator[proto.StreamMessageResponse, None]:
        """Sends a message, and gives its events."""


class Reads(Protocol):
    """What is needed of the event log."""

    def watch(
        self, key: Key, after: int = 0, *, message_id: str = "", follow: bool = False
    ) -> AsyncIterator[proto.Event]:
        """Events after a sequence number, of one message or all; with `follow` until the message has ended."""

    async def messages(
        self, key: Key, before: int, limit: int, *, statuses: "Sequence[proto.MessageStatus.ValueType]" = ()
    ) -> Courses:
        """A conversation's messages that began before a sequence number, the newest first."""

    async def find(self, key: Key, message_id: str = "") -> proto.Conversation:
        """A conversation, with that message."""

    async def list(self, principal: str, agent: str, page_size: int, page_token: str) -> Page:
        """A principal's conversations, those that changed last first."""

    async def cancel(self, key: Key, message_id: str) -> "proto.MessageStatus.ValueType":
        """Asks for the end of a message."""


@dataclass(frozen=True)
class Core:
    """Of one gateway."""

    registry: Registry
    policy: Callable[[], Policy]
    sender: Sends
    log: Reads
    # For the addresses in cards: whether the HTTP port speaks TLS, and the port of gRPC.
    tls: bool
    grpc_port: int
