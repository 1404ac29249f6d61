"""Has conversations gone on with that somebody left in the middle: a worker that ended, or the platform as it did.

Whoever waits for such a message calls again, which opens the conversation. Where nobody does, a worker is asked for
it here, by the way that all calls go: it wakes agents that sleep, and keeps a conversation's calls together. A worker
that is asked for a conversation with messages that have not ended opens it, and goes on with them.
"""

import asyncio
import contextlib
import heapq
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial

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
# Of them of one agent, whose workers may answer never: the others' are not to wait for it.
_MOST_OF_AGENT, _TURN_S = 4, 1.0
_LONGEST_DELAY_S = 60.0
# An agent that sleeps may have to load a model first.
_DEADLINE_S = 300.0


@dataclass(frozen=True, order=True)
class _Due:
    """When somebody is asked for a conversation, and how long it takes until the next time."""

    at_s: float
    delay_s: float
    key: Key = field(compare=False)


class Recovery:
    """Of one log.

    Args:
        log: tells which conversations were left.
        registry: which agents run.
        through: a channel to Envoy's inner listener.
    """

    def __init__(self, log: EventLog, registry: Registry, through: aio.Channel) -> None:
        self._log = log
        self._registry = registry
        self._stub: conversation_grpc.ConversationServiceAsyncStub = conversation_grpc.ConversationServiceStub(
            through
        )
        # What is next for each; whatever else is found of it is out of date.
        self._left: dict[Key, _Due] = {}
        # A heap; conversations of agents that do not run are parked, however many.
        self._due: list[_Due] = []
        self._parked: dict[str, list[_Due]] = {}
        self._asking: set[asyncio.Task[None]] = set()
        self._asking_of: Counter[str] = Counter()
        self._news = asyncio.Event()
        log.left.append(self._add)
        registry.listeners.append(self._changed)

    @property
    def waiting(self) -> int:
        """Conversations that were left, and of which it is not known that somebody has taken them up."""
        return len(self._left)

    def _add(self, key: Key) -> None:
        self._push(_Due(_now_s() + RETURN_S, RETURN_S, key))

    def _push(self, due: _Due) -> None:
        self._left[due.key] = due
        heapq.heappush(self._due, due)
        self._news.set()

    def _changed(self, agent_id: str) -> None:
        if agent_id in self._parked and self._runs(agent_id):
            for due in self._parked.pop(agent_id):
                if self._left.get(due.key) is due:
                    self._push(due)

    def _runs(self, agent_id: str) -> bool:
        """Also one that sleeps does; one that was stopped is left alone."""
        agent = self._registry.get(agent_id)
        return agent is not None and not agent.stopped and CONVERSATIONS in agent.services

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self._news.clear()
                self._look()
                full = len(self._asking) >= _MOST
                next_s = None if full or not self._due else max(0.0, self._due[0].at_s - _now_s())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(next_s):
                        await self._news.wait()
        finally:
            for task in self._asking:
                task.cancel()
            await asyncio.gather(*self._asking, return_exceptions=True)

    def _look(self) -> None:
        while self._due and self._due[0].at_s <= _now_s() and len(self._asking) < _MOST:
            due = heapq.heappop(self._due)
            if self._left.get(due.key) is not due:
                continue
            if self._log.held(due.key):
                del self._left[due.key]
            elif not self._runs(due.key.agent):
                self._parked.setdefault(due.key.agent, []).append(due)
            elif self._asking_of[due.key.agent] >= _MOST_OF_AGENT:
                self._push(replace(due, at_s=_now_s() + _TURN_S))
            else:
                task = asyncio.create_task(self._ask_again(due))
                self._asking.add(task)
                self._asking_of[due.key.agent] += 1
                task.add_done_callback(partial(self._done, due.key.agent))

    def _done(self, agent: str, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        self._asking_of[agent] -= 1
        if not self._asking_of[agent]:
            del self._asking_of[agent]
        self._news.set()
        if not task.cancelled() and (error := task.exception()):
            _log.error("a conversation could not be taken up", exc_info=error)

    async def _ask_again(self, due: _Due) -> None:
        """Asks for it, and later whether that was of use."""
        again = True
        try:
            again = await self._ask(due.key)
        finally:
            # It may have been taken up, and left once more.
            if self._left.get(due.key) is due:
                del self._left[due.key]
                if again:
                    delay_s = min(2 * due.delay_s, _LONGEST_DELAY_S)
                    self._push(_Due(_now_s() + delay_s, delay_s, due.key))

    async def _ask(self, key: Key) -> bool:
        """Asks a worker for it; whether it is still to be looked after."""
        try:
            if not (await self._log.find(key)).messages:
                return False
        except ConversationNotFound:
            return False
        except StoreUnavailable:
            return True
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
        return True


def _now_s() -> float:
    return asyncio.get_running_loop().time()
