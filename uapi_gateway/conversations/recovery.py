"""Has conversations gone on with that somebody left in the middle: a worker that ended, or the platform as it did.

Whoever waits for such a message calls again, which opens the conversation. Where nobody does, a worker is asked for
it here, by the way that all calls go: it wakes agents that sleep, and keeps a conversation's calls together. A worker
that is asked for a conversation with messages that have not ended opens it, and goes on with them.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from agentruntime import log
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import conversation_service_pb2_grpc as conversation_grpc
from agentruntime.errors import ConversationNotFound, StoreUnavailable
from grpc import aio

from uapi_gateway.access import headers
from uapi_gateway.conversations.log import RETURN_S, EventLog
from uapi_gateway.conversations.store import Key
from uapi_gateway.descriptors import CONVERSATIONS
from uapi_gateway.registry import Registry
from uapi_gateway.xds.routes import AGENT_HEADER, CONVERSATION_HEADER

_log = log.get("uapi_gateway.conversations")
# Asked for at a time: waking takes a while, and workers have callers, too.
_MOST = 16
_LOOK_S = 0.1
_LONGEST_DELAY_S = 60.0
# An agent that sleeps may have to load a model first.
_DEADLINE_S = 300.0


@dataclass
class _Due:
    at_s: float
    delay_s: float


class Recovery:
    """Of one log.

    Args:
        log: tells which conversations were left.
        registry: which agents run.
        through: a channel to Envoy's inner listener.
        now_s: the event loop's time.
    """

    def __init__(self, log: EventLog, registry: Registry, through: aio.Channel) -> None:
        self._log = log
        self._registry = registry
        self._stub: conversation_grpc.ConversationServiceAsyncStub = conversation_grpc.ConversationServiceStub(
            through
        )
        self._due: dict[Key, _Due] = {}
        self._asking: dict[Key, asyncio.Task[None]] = {}
        self._news = asyncio.Event()
        log.left.append(self._left)

    @property
    def waiting(self) -> int:
        """Conversations that were left, and that nobody has taken up yet."""
        return len(self._due)

    def _left(self, key: Key) -> None:
        self._due[key] = _Due(_now_s() + RETURN_S, RETURN_S)
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                if not self._due:
                    self._news.clear()
                    await self._news.wait()
                self._look()
                await asyncio.sleep(_LOOK_S)
        finally:
            for task in self._asking.values():
                task.cancel()
            await asyncio.gather(*self._asking.values(), return_exceptions=True)

    def _look(self) -> None:
        now_s = _now_s()
        for key, due in list(self._due.items()):
            if self._log.held(key):
                del self._due[key]
            elif due.at_s <= now_s and key not in self._asking and self._runs(key.agent):
                if len(self._asking) >= _MOST:
                    return
                # If that was for nothing, more rarely.
                due.delay_s = min(2 * due.delay_s, _LONGEST_DELAY_S)
                task = asyncio.create_task(self._ask(key, due))
                self._asking[key] = task
                task.add_done_callback(self._done(key))

    def _done(self, key: Key) -> "Callable[[asyncio.Task[None]], None]":
        def done(task: asyncio.Task[None]) -> None:
            self._asking.pop(key, None)
            if not task.cancelled() and (error := task.exception()):
                _log.error("a conversation could not be taken up", conversation=key.conversation_id, exc_info=error)

        return done

    def _runs(self, agent_id: str) -> bool:
        """Also one that sleeps does; one that was stopped is left alone."""
        agent = self._registry.get(agent_id)
        return agent is not None and not agent.stopped and CONVERSATIONS in agent.services

    async def _ask(self, key: Key, due: _Due) -> None:
        due.at_s = _now_s() + due.delay_s
        try:
            if not (await self._log.find(key)).messages:
                self._due.pop(key, None)
                return
        except ConversationNotFound:
            self._due.pop(key, None)
            return
        except StoreUnavailable:
            return
        metadata = (
            (AGENT_HEADER, key.agent),
            (CONVERSATION_HEADER, key.conversation_id),
            (headers.PRINCIPAL, key.principal),
            # Whoever sent the message was allowed to.
            (headers.GRANTED, "1"),
        )
        request = proto.GetConversationRequest(conversation_id=key.conversation_id)
        try:
            await self._stub.GetConversation(request, metadata=metadata, timeout=_DEADLINE_S)
        except grpc.RpcError as error:
            _log.info(
                "nobody has taken up a conversation yet", agent=key.agent, conversation=key.conversation_id,
                error=str(error.details() if isinstance(error, aio.AioRpcError) else error),
            )  # fmt: skip
        due.at_s = _now_s() + due.delay_s


def _now_s() -> float:
    return asyncio.get_running_loop().time()
