"""How much each agent is called: counted by Envoy, and by the relay for the calls that it carries itself.

A call counts once. What Envoy sends to a worker is in its load reports; what it sends to the relay is left out of
them, and the relay counts it: waiting first, in flight once a worker has it. What the relay sends through Envoy
again is Envoy's to count.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool

from uapi_gateway.registry import Registry
from uapi_gateway.xds.clusters import named

# Priority of an agent's workers among its endpoints in Envoy; the relay has the next one.
_WORKERS = 0


class RelayedCall:
    """One call in the relay's hands. It begins waiting."""

    def __init__(self, queued: Counter[str], carried: Counter[str], agent_id: str) -> None:
        self._queued, self._carried, self._agent_id = queued, carried, agent_id
        self._counted = queued
        queued[agent_id] += 1

    def carried(self) -> None:
        """A worker has it now."""
        self._count(self._carried)

    def waits(self) -> None:
        """Its worker is lost, and it waits again."""
        self._count(self._queued)

    def ended(self) -> None:
        self._counted[self._agent_id] -= 1

    def _count(self, where: Counter[str]) -> None:
        self._counted[self._agent_id] -= 1
        where[self._agent_id] += 1
        self._counted = where


class Load:
    """The calls of each agent since the last report and now. `due` is set when there is something to report."""

    def __init__(self, registry: Registry, running: Callable[[], Counter[str]] = Counter) -> None:
        """`running`: how many messages of conversations run, by agent; their callers may have hung up."""
        self._registry = registry
        self._running = running
        self._begun: Counter[str] = Counter()
        self._queued: Counter[str] = Counter()
        self._carried: Counter[str] = Counter()
        # As Envoy last said: at the agents' workers, and at the relay.
        self._in_envoy: Counter[str] = Counter()
        self._at_relay: Counter[str] = Counter()
        # Calls that Envoy carries and does not report, by agent, for those where there may be any.
        self._unseen = {agent.agent_id: 0 for agent in registry.agents()}
        registry.listeners.append(self._changed)
        # Without it nothing may be said of the load, for silence about an agent means that it is idle.
        self.envoy_reports = False
        self.due = asyncio.Event()
        # Called when Envoy's reports have ended.
        self.left: list[Callable[[], None]] = []

    @contextlib.contextmanager
    def call(self, agent_id: str) -> Iterator[RelayedCall]:
        """Counts a call that the relay carries itself, for as long as the block lasts."""
        self._begun[agent_id] += 1
        relayed = RelayedCall(self._queued, self._carried, agent_id)
        try:
            yield relayed
        finally:
            relayed.ended()

    def take(self, request: Any) -> None:
        """Takes in Envoy's LoadStatsRequest. A cluster that is not in it has no calls."""
        self._in_envoy.clear()
        self._at_relay.clear()
        for stats in request.cluster_stats:
            if not stats.upstream_locality_stats or not named(stats.cluster_name):
                continue
            # A call to a worker by its name is a call of its agent.
            target = self._registry.find(named(stats.cluster_name))
            if target is None:
                continue
            agent_id = target.agent.agent_id
            for place in stats.upstream_locality_stats:
                if place.priority == _WORKERS:
                    self._in_envoy[agent_id] += place.total_requests_in_progress
                    self._begun[agent_id] += place.total_issued_requests
                else:
                    self._at_relay[agent_id] += place.total_requests_in_progress
        self.envoy_reports = True
        self.due.set()

    @property
    def doubtful(self) -> list[str]:
        """Agents that may only seem to have no calls.

        A call whose worker has left the endpoints since, or whose cluster was changed, goes on, but Envoy reports it
        no more. So when an agent that was changed has no calls any more, Envoy's gauge must say so too.
        """
        return sorted(agent_id for agent_id in self._unseen if not self._in_envoy[agent_id])

    def take_active(self, agent_id: str, active: int) -> None:
        """Takes in an agent's gauge of calls in flight, those that wait at the relay included."""
        self._unseen[agent_id] = max(0, active - self._at_relay[agent_id])
        if not self._unseen[agent_id]:
            del self._unseen[agent_id]

    def _changed(self, agent_id: str) -> None:
        self._unseen.setdefault(agent_id, 0)

    def envoy_left(self) -> None:
        """Envoy's reports have ended, with all calls that it carried."""
        self._in_envoy.clear()
        self._at_relay.clear()
        self._unseen.clear()
        self.envoy_reports = False
        for listener in self.left:
            listener()

    def report(self) -> list[pool.AgentLoad]:
        """All agents that have anything to say, by id; what has begun is said once."""
        begun, self._begun = self._begun, Counter()
        running = self._running()
        loads = [
            pool.AgentLoad(
                agent=agent_id,
                in_flight=max(
                    (self._in_envoy[agent_id] or self._unseen.get(agent_id, 0)) + self._carried[agent_id],
                    running[agent_id],
                ),
                begun=begun[agent_id],
                queued=self._queued[agent_id],
            )
            for agent_id in sorted({*self._in_envoy, *self._unseen, *self._carried, *self._queued, *begun, *running})
        ]
        # Counters keep what has come down to zero.
        for counter in (self._queued, self._carried):
            for agent_id in [agent_id for agent_id, count in counter.items() if not count]:
                del counter[agent_id]
        return [load for load in loads if load.in_flight or load.begun or load.queued]

    def take_back(self, loads: list[pool.AgentLoad]) -> None:
        """A report that did not arrive: what had begun is to be said again."""
        for load in loads:
            self._begun[load.agent] += load.begun
