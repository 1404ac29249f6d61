"""Who makes a system call: the headers in which Envoy says so, as the connection was found to be.

Only Envoy reaches the socket that these headers come to, and a worker's own of these names are removed before.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agentruntime.errors import Internal

# What a worker says of itself in these is removed, and none of it reaches an agent.
AGENT = "x-uapi-caller-agent"
WORKER = "x-uapi-caller-worker"
REVISION = "x-uapi-caller-revision"
PRIVATE = (AGENT, WORKER, REVISION)


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
    told = {key: str(value) for key, value in metadata or () if key in PRIVATE}
    if not told.get(AGENT):
        raise Internal("a system call came without its caller")
    revision = told.get(REVISION, "")
    return Caller(told[AGENT], told.get(WORKER, ""), int(revision) if revision.isdigit() else 0)
