"""One worker as the pool sees it."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent_pool import lifecycle
from agent_pool.drivers.base import Running
from agent_pool.health import HealthProbe
from agent_pool.lifecycle import Event, State
from agent_pool.restart import CRASH_LOOP_FAILURES
from agent_pool.usage import Meter


@dataclass(eq=False)
class Worker:
    """Its state changes through `apply` only."""

    # Its name: "my-agent-01". A worker that takes its place has the same.
    worker_id: str
    agent: str
    number: int
    revision: int
    # 0, or what tells it from a worker of the same name that is still there.
    turn: int = 0
    state: State = State.PENDING
    # Why it is in its state, in a sentence.
    reason: str = ""
    # Why it failed the last time.
    last_failure: str = ""
    restarts: int = 0
    # In a row; for the backoff.
    failures: int = 0
    pid: int = 0
    address: str = ""
    # Since the epoch; 0 for never.
    started_at_s: float = 0.0
    ready_at_s: float = 0.0
    gpus: tuple[int, ...] = ()
    handle: Mapping[str, Any] = field(default_factory=dict)
    meter: Meter | None = None
    probe: HealthProbe | None = None
    # Of the last failure, if the agent's code raised; else the last words of its log.
    last_traceback: str = ""
    # When it is started again, since the epoch; 0 if it is not to be.
    retry_at_s: float = 0.0
    # It has ended, and stays listed until an operator restarts or removes it.
    rests: bool = False
    # The longest that its event loop was blocked between the last two health checks.
    lag_s: float = 0.0
    # Set to have its health asked now.
    ask_now: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def key(self) -> str:
        """By which the pool, its ledger and its driver tell it from all others."""
        return f"{self.worker_id}~{self.turn}" if self.turn else self.worker_id

    @property
    def wanted(self) -> bool:
        """Whether it counts towards the desired number."""
        return self.rests or self.state not in (State.DRAINING, State.STOPPED)

    @property
    def crash_loop(self) -> bool:
        return self.failures >= CRASH_LOOP_FAILURES and self.state is not State.READY

    def apply(self, event: Event, reason: str = "") -> None:
        """Moves on to the state that `event` leads to.

        Raises:
            Internal: it cannot happen now.
        """
        self.state = lifecycle.after(self.state, event)
        if event is Event.FAIL:
            self.last_failure = reason
        elif event is Event.ANSWER and self.last_failure and not reason:
            reason = f"restarted after: {self.last_failure}"
        self.reason = reason
        if self.state is State.READY and event is Event.ANSWER:
            self.ready_at_s = time.time()
        if self.state in (State.FAILED, State.STOPPED, State.PENDING):
            self.pid, self.address, self.handle, self.meter = 0, "", {}, None

    def runs(self, running: Running, *, adopted: bool = False) -> None:
        """Takes in where its process is, which runs since now unless it was `adopted`."""
        self.pid, self.address, self.handle = running.pid, running.address, running.handle
        # A container has used some before it is known: since its launch.
        age_s = time.time() - self.started_at_s
        self.meter = Meter(None if adopted else time.monotonic() - age_s)
