"""Who makes a system call: the headers in which Envoy says so, as the connection was found to be.

Only Envoy reaches the socket that these headers come to, and a worker's own of these names are removed before.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agentruntime.errors import Internal

# What a worker says of itself in these is removed.
AGENT = "x-uapi-caller-agent"
WORKER = "x-uapi-caller-worker"
REVISION = "x-uapi-caller-revision"
# By which the gateway tells Envoy the same: from "PP2_TYPE_MIN_CUSTOM" of the PROXY protocol on.
TLV_AGENT, TLV_WORKER, TLV_REVISION = 0xE0, 0xE1, 0xE2
# "caller>called", for the routes.
EDGE = "x-uapi-caller-edge"
# What no agent is told.
PRIVATE = (AGENT, WORKER, REVISION, EDGE)
# Agents that a call may come by; a circle ends here at the latest.
MOST_HOPS = 16
# Of a value that Envoy does not have.
_MISSING = "-"


@dataclass(frozen=True)
class Caller:
    """A worker."""

    agent: str
    worker_id: str
    revision: int

    @property
    def principal(self) -> str:
        return f"agent:{self.agent}"


def caller_of(metadata: Iterable[tuple[str, Any]] | None) -> Caller:
    """The caller of a system call.

    Raises:
        Internal: the call did not come by way of Envoy.
    """
    told = {key: str(value) for key, value in metadata or () if key in PRIVATE and value != _MISSING}
    if not told.get(AGENT):
        raise Internal("a system call came without its caller")
    revision = told.get(REVISION, "")
    return Caller(told[AGENT], told.get(WORKER, ""), int(revision) if revision.isdigit() else 0)
