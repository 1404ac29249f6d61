"""Whether a call that failed is made again, and when. No I/O in here.

What gRPC itself knows never left this machine, it sends again by itself. Beyond that a call is repeated only if that
cannot make an agent do something twice:

    no worker has seen it (the platform says so)     any method
    a worker may have seen it                        methods whose proto declares them idempotent, of agents that do
                                                     not say `idempotent: false`; who repeats asks the registry
    part of the answer was handed over               never, nor where the caller streams the request
"""

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf import descriptor_pb2, descriptor_pool

from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_pb2

# The platform restarts its parts within a second; what takes longer than this is no such moment.
PATIENCE_S = 5.0
_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 1.0
# Said by the platform where no worker, or no pool, was reached.
_UNREACHED = frozenset(("AGENT_NOT_READY", "POOL_UNAVAILABLE"))
# The gateway has repeated these itself where that was possible: a call that ends every worker that it meets must not
# go on for long.
_ONCE = frozenset(("WORKER_LOST", "WORKER_DRAINED"))
# Meant to be known at once, or waited for already.
_FINAL = frozenset(("CIRCUIT_OPEN", "NOT_CONNECTED"))
_PLATFORM = frozenset(
    f"uapi.v1.{name}" for name in ("AgentGateway", "AgentPool", "AgentRegistry", "ImageService", "ModelService")
)
_IDEMPOTENT = (descriptor_pb2.MethodOptions.IDEMPOTENT, descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS)


def declared_idempotent(method: str) -> bool:
    """Whether the proto of "/package.Service/Method" says so; False for what this process does not know."""
    service, _, name = method.strip("/").rpartition("/")
    try:
        described = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    except KeyError:
        return False
    return described.GetOptions().idempotency_level in _IDEMPOTENT


def may_repeat(agents: Iterable[registry_pb2.AgentInfo], service: str) -> bool:
    """Whether calls may be repeated of whichever of these agents serves the service."""
    serving = [agent for agent in agents if service in agent.services]
    return bool(serving) and all(agent.idempotent for agent in serving)


@dataclass(frozen=True)
class Again:
    """The call may be made again after so many seconds; with `ask`, if the registry lets it."""

    delay_s: float
    ask: bool


class Attempts:
    """The attempts at one call.

    Args:
        method: "/package.Service/Method".
        timeout_s: for all of them together; None for no end.
        now: in seconds, of whichever clock the other methods are told.
        repeatable: whether the request can be sent again, and the caller wants it to be.
    """

    def __init__(self, method: str, timeout_s: float | None, now: float, *, repeatable: bool) -> None:
        self.method = method
        self.service = method.strip("/").rpartition("/")[0]
        self.timeout_s = timeout_s
        self.repeatable = repeatable
        # What the last one that was followed by another failed with.
        self.failure: errors.AgentError | None = None
        self._began = now
        self._failed: float | None = None
        self._failures = 0
        self._lost = 0

    def elapsed_s(self, now: float) -> float:
        """Seconds since the first attempt began."""
        return now - self._began

    def left_s(self, now: float) -> float | None:
        """What the next attempt may take."""
        return None if self.timeout_s is None else max(self.timeout_s - self.elapsed_s(now), 0.0)

    def again(self, error: errors.AgentError, now: float, draw: float) -> Again | None:
        """What to do after an attempt that failed before anything of its answer was handed over.

        Args:
            error: as the attempt's failure was decoded.
            now: when that was.
            draw: from 0 to 1, by chance: callers that failed together should not come back together.
        """
        if not self.repeatable or not isinstance(error, errors.Unavailable) or error.reason in _FINAL:
            return None
        unreached = error.reason in _UNREACHED
        unseen = unreached or not error.begun
        self._lost += error.reason in _ONCE
        if not unseen and (self._lost > 1 or not declared_idempotent(self.method)):
            return None
        if self._failed is None:
            self._failed = now
        # Who says that no worker could be reached may have waited for one already.
        if now - (self._began if unreached else self._failed) > PATIENCE_S:
            return None
        delay_s = min(_FIRST_DELAY_S * 2.0**self._failures, _LONGEST_DELAY_S) * (0.5 + draw / 2)
        self._failures += 1
        left_s = self.left_s(now)
        if left_s is not None and left_s <= delay_s:
            return None
        self.failure = error
        return Again(delay_s, ask=not unseen and self.service not in _PLATFORM)
