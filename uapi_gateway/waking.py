"""Has the pool wake agents that sleep: once for all calls that wait for an agent, as long as one of them does."""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

import grpc
from agentruntime import errors, log, status
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from agentruntime._proto.uapi.v1 import agent_pool_pb2_grpc
from grpc import aio

from uapi_gateway.deployments import from_deployment
from uapi_gateway.registry import Endpoint, Registry

_log = log.get("uapi_gateway.waking")
# Before a pool is asked again that said it was not available, or ended meanwhile.
_RETRY_S = 0.05
# Upper bounds of the histogram of wakes. A warm template takes tens of milliseconds, a model seconds.
BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
OK, FAILED, ABANDONED = "ok", "failed", "abandoned"


@dataclass
class Figures:
    """The wakes of one agent since the gateway started."""

    # By outcome: ok, failed, or abandoned by the last call that waited for it.
    outcomes: dict[str, int] = field(default_factory=dict)
    # Wakes that took at most so long as the bucket of the same index, not cumulative; the last is of longer ones.
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    sum_s: float = 0.0

    def add(self, outcome: str, took_s: float) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        if outcome == OK:
            self.buckets[bisect_left(BUCKETS_S, took_s)] += 1
            self.sum_s += took_s


class Wake:
    """One agent's wake, under way or done, and the calls that wait for it."""

    def __init__(self, task: "asyncio.Task[tuple[Endpoint, ...]]") -> None:
        self.task = task
        self.waiting = 0
        # A call that waited has got its worker: the news came before the pool's answer.
        self.served = False
        # Its failure counts as seen although the last that waited for it may just have gone.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The workers that are ready, once it has succeeded."""
        if not self.task.done() or self.task.cancelled() or self.task.exception() is not None:
            return ()
        return self.task.result()

    @property
    def error(self) -> errors.AgentError | None:
        """Why it failed, if it did."""
        if not self.task.done() or self.task.cancelled():
            return None
        found = self.task.exception()
        assert found is None or isinstance(found, errors.AgentError)
        return found


class Waker:
    """The wakes under way, one for each agent at most.

    What the pool answers is used at once, for it may come before the watch says the same. It does not enter the
    registry, where it could undo what the watch has said since: it lasts until the registry hears of the agent again.
    """

    def __init__(self, registry: Registry, channel: aio.Channel) -> None:
        self._channel = channel
        self._stub: agent_pool_pb2_grpc.AgentPoolAsyncStub = agent_pool_pb2_grpc.AgentPoolStub(channel)
        self._wakes: dict[str, Wake] = {}
        self._figures: dict[str, Figures] = {}
        self._registry = registry
        registry.listeners.append(self._changed)

    def find(self, agent_id: str) -> Wake | None:
        """The wake of an agent that is under way, or whose answer is the latest news of it."""
        return self._wakes.get(agent_id)

    def join(self, agent_id: str) -> Wake:
        """Waits along for an agent's wake, which begins with the first; each `join` needs its `leave`."""
        wake = self._wakes.get(agent_id)
        if wake is None or wake.task.done():
            wake = self._wakes[agent_id] = Wake(asyncio.ensure_future(self._wake(agent_id)))
        wake.waiting += 1
        return wake

    def leave(self, agent_id: str, wake: Wake) -> None:
        """Waits no longer. With nobody left the pool is asked no more; a start that is under way goes on there."""
        wake.waiting -= 1
        if wake.waiting == 0 and not wake.served and not wake.task.done():
            wake.task.cancel()
            if self._wakes.get(agent_id) is wake:
                del self._wakes[agent_id]

    def discard(self, agent_id: str) -> None:
        """Forgets an answer that has turned out to be of no use."""
        wake = self._wakes.get(agent_id)
        if wake is not None and wake.task.done():
            del self._wakes[agent_id]

    def _changed(self, agent_id: str) -> None:
        self.discard(agent_id)
        if self._registry.get(agent_id) is None:
            self._figures.pop(agent_id, None)

    @property
    def pool_away(self) -> bool:
        """The pool cannot be reached now."""
        return self._channel.get_state() is not grpc.ChannelConnectivity.READY

    async def _wake(self, agent_id: str) -> tuple[Endpoint, ...]:
        began, outcome = time.monotonic(), ABANDONED
        try:
            deployment = await self._ask(agent_id)
            outcome = OK
        except errors.AgentError as error:
            outcome = FAILED
            _log.warning("an agent did not wake", agent=agent_id, error=error.message)
            raise
        finally:
            # One that was removed meanwhile would keep its figures for good.
            if self._registry.get(agent_id) is not None:
                self._figures.setdefault(agent_id, Figures()).add(outcome, time.monotonic() - began)
        return tuple(endpoint for endpoint in from_deployment(deployment).endpoints if endpoint.ready)

    async def _ask(self, agent_id: str) -> pool.Deployment:
        """Asks the pool until it answers.

        Raises:
            AgentError: its answer, if that is no.
        """
        while True:
            try:
                # Waits for a pool that is being restarted. The time limit is that of the calls that wait.
                answer = await self._stub.WakeAgent(pool.WakeAgentRequest(agent=agent_id), wait_for_ready=True)
            except aio.AioRpcError as failure:
                error = status.decode(failure)
                # A pool that is away or ends; other reasons for being unavailable are its answer.
                if error.reason not in (errors.Unavailable.reason, errors.Cancelled.reason):
                    raise error from failure
            else:
                return answer.deployment
            await asyncio.sleep(_RETRY_S)

    def figures(self) -> Iterable[tuple[str, Figures]]:
        """The wakes of each agent, by agent."""
        return sorted(self._figures.items())
