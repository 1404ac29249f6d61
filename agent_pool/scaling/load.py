"""How much agents are called: what the gateway reported last, and for how long an agent had no call."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

# A report that is older says nothing any more. They come every half second, or every second while nobody calls.
STALE_S = 3.0


@dataclass(frozen=True)
class AgentLoad:
    """Of one agent, in one report."""

    agent: str
    in_flight: int
    # Since the report before.
    begun: int
    # Waiting in the gateway for a worker.
    queued: int

    @property
    def calls(self) -> int:
        """That somebody waits for now."""
        return self.in_flight + self.queued


class LoadBook:
    """Of all agents of a pool. Times are those of one clock, in seconds.

    Idle time is counted on a clock of its own, which runs only while reports come: nobody is idle because the gateway
    has been away.
    """

    def __init__(self) -> None:
        self._loads: dict[str, AgentLoad] = {}
        self._reported_s = -math.inf
        self._heard_s = 0.0
        # On the clock that runs while reports come.
        self._called_s: dict[str, float] = {}

    def report(self, loads: Iterable[AgentLoad], now_s: float) -> None:
        """Takes in a report: all agents with anything to say, the others have no calls."""
        passed_s = now_s - self._reported_s
        if passed_s <= STALE_S:
            self._heard_s += max(0.0, passed_s)
        self._reported_s = now_s
        self._loads = {load.agent: load for load in loads}
        for load in self._loads.values():
            if load.calls or load.begun:
                self.touch(load.agent)

    def fresh(self, now_s: float) -> bool:
        """Whether reports come at present."""
        return now_s - self._reported_s <= STALE_S

    def calls(self, agent: str, now_s: float) -> int:
        """In flight and waiting, as last reported; 0 if that is too long ago."""
        load = self._loads.get(agent)
        return load.calls if load is not None and self.fresh(now_s) else 0

    def idle_s(self, agent: str) -> float:
        """For how long the agent had no call, of the time in which reports came, up to the last of them."""
        return self._heard_s - self._called_s.get(agent, 0.0)

    def touch(self, agent: str) -> None:
        """Counts as a call now: the agent has just been started, or woken."""
        self._called_s[agent] = self._heard_s
