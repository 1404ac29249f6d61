"""The call that a worker handles now, for the calls that it makes meanwhile; and where it makes system calls."""

import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

# Metadata: the agents that a call has come by, ",first,second". The platform adds each.
CHAIN_KEY = "x-uapi-chain"
# There if the gateway asks the pool for an operator of some agents, not of all.
SOME_AGENTS_KEY = "x-uapi-some-agents"
# Of the socket for system calls, as gRPC writes it; "" in a process that is no worker.
address = ""


@dataclass(frozen=True)
class Incoming:
    """What the calls that belong to it inherit."""

    chain: str = ""
    # By time.monotonic(); None has no deadline.
    ends_at_s: float | None = None

    def left_s(self) -> float | None:
        """Until its deadline, and a moment at least: whoever is late is told so by the call that fails."""
        return None if self.ends_at_s is None else max(self.ends_at_s - time.monotonic(), 0.001)


current: ContextVar[Incoming | None] = ContextVar("call", default=None)


def enter(metadata: Iterable[tuple[str, Any]] | None, left_s: float | None) -> None:
    """Makes a call current that has begun to be handled."""
    chain = next((str(value) for key, value in metadata or () if key == CHAIN_KEY), "")
    current.set(Incoming(chain, None if left_s is None else time.monotonic() + left_s))


def attach(path: str) -> None:
    """Tells this process, a worker, the path of its socket for system calls; "" where it has none."""
    global address  # noqa: PLW0603 — because a process is one worker
    address = f"unix:{path}" if path else ""
