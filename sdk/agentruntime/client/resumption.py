"""How a stream of a conversation's events is gone on with after it broke. No I/O in here.

Events are numbered, and the last number that was handed over is all that a stream needs to go on without a gap and
without a repeat, at whichever worker. So, other than a call of `repeat.py`, it goes on after part of it was there.
"""

import math
from enum import Enum, auto
from typing import Any

from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.client import repeat

# As long as the pool waits at most before it starts a worker again that ended again and again (docs/decisions/0077).
PATIENCE_S = 60.0
_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 1.0
# What became of the message, though its code is UNAVAILABLE; or meant to be known at once, or waited for already.
_FINAL = frozenset(("MESSAGE_AMBIGUOUS", "MESSAGE_SET_ASIDE", "CIRCUIT_OPEN", "NOT_CONNECTED", "TLS_FAILED"))
# What is not there is a worker, a pool, or what conversations are kept in: the message is nowhere yet.
_UNREACHED = frozenset(("AGENT_NOT_READY", "POOL_UNAVAILABLE", "STORE_UNAVAILABLE"))
# gRPC's own, where there was no connection, or it broke.
_CONNECTION = frozenset(("UNAVAILABLE", "CONNECTION_LOST"))
_END = ("completion", "failure")


class Until(Enum):
    """Where a stream of events ends."""

    # With the completion or the failure of the message that it is of.
    MESSAGE = auto()
    # With what there is now.
    NOW = auto()
    # When the caller hangs up.
    FOREVER = auto()


class Resumption:
    """How far one stream is, over as many calls as it takes.

    Args:
        until: where it ends.
        after: the sequence number before its first event.
        timeout_s: for all calls together; None for no end.
        now: in seconds, of whichever clock the other methods are told.
    """

    def __init__(self, until: Until, after: int, timeout_s: float | None, now: float) -> None:
        self.until = until
        self.timeout_s = timeout_s
        # Of the last event that was handed over.
        self.sequence = after
        self.ended = False
        # What the last call failed with, if nothing was heard since.
        self.failure: errors.AgentError | None = None
        self._began = now
        self._failed: float | None = None
        self._failures = 0
        # Whether a worker may have something of it.
        self._reached = after > 0 or until is not Until.MESSAGE
        # Whether anything was: it is on disk, then.
        self._heard = after > 0

    def options(self, now: float) -> dict[str, Any]:
        """How the next call is made, in gRPC's words."""
        left_s = self._left_s(now)
        return {
            "timeout": math.inf if left_s is None else left_s,
            # After one that failed it is not to wait for a connection: how long that is worth is decided here.
            "wait_for_ready": None if self.failure is None else False,
        }

    def _left_s(self, now: float) -> float | None:
        return None if self.timeout_s is None else max(self.timeout_s - (now - self._began), 0.0)

    @property
    def away_s(self) -> float:
        """How long nobody can have been there, where nobody is."""
        return PATIENCE_S if self.timeout_s is None else min(self.timeout_s, PATIENCE_S)

    def ends_with(self, event: proto.Event) -> bool:
        """Whether nothing follows that event."""
        return self.until is Until.MESSAGE and event.WhichOneof("content") in _END

    def heard(self, event: proto.Event) -> bool:
        """Takes an event in; False if it was handed over before."""
        self.failure = self._failed = None
        self._failures = 0
        self._reached = self._heard = True
        if event.sequence <= self.sequence:
            return False
        self.sequence = event.sequence
        self.ended = self.ends_with(event)
        return True

    def closed(self) -> None:
        """The call ended well.

        Raises:
            Unavailable: the stream was not to end yet.
        """
        if self.until is Until.NOW:
            self.ended = True
        elif not self.ended:
            raise errors.Unavailable("the stream ended before its last event", reason="WORKER_LOST")

    def delay_s(self, error: errors.AgentError, now: float, draw: float) -> float:
        """Seconds until the next call, after one that failed.

        Args:
            error: as the call's failure was decoded.
            now: when that was.
            draw: from 0 to 1, by chance: callers that failed together should not come back together.

        Raises:
            AgentError: there is none.
        """
        if isinstance(error, errors.DeadlineExceeded):
            raise self._late(error)
        if not isinstance(error, errors.Unavailable) or error.reason in _FINAL:
            raise error
        self._reached = self._reached or (error.reason not in _UNREACHED and error.begun)
        if self._failed is None:
            self._failed = now
        if self._reached:
            patience_s, since = PATIENCE_S, self._failed
        else:
            # Who says that no worker could be reached has waited for one already, and says why there is none.
            patience_s, since = repeat.PATIENCE_S, self._began
        if now - since > patience_s:
            raise error
        delay_s = min(_FIRST_DELAY_S * 2.0 ** min(self._failures, 10), _LONGEST_DELAY_S) * (0.5 + draw / 2)
        self._failures += 1
        self.failure = error
        left_s = self._left_s(now)
        if left_s is not None and left_s <= delay_s:
            raise self._late(error)
        return delay_s

    def unconnected(self, final: errors.AgentError) -> bool:
        """Whether a failure for good may be one of the connection, so that it is worth a look."""
        reason = self.failure.reason if self.failure else final.reason
        return reason in _CONNECTION and isinstance(final, errors.Unavailable | errors.DeadlineExceeded)

    def _late(self, error: errors.AgentError) -> errors.DeadlineExceeded:
        if self.timeout_s is None:
            # Not ours: of a call that this one belongs to, or of somebody on the way.
            return errors.DeadlineExceeded(error.message, reason=error.reason, metadata=error.metadata)
        before = error if self.failure is error else self.failure
        message = f"the events were not all there within {self.timeout_s:g} s"
        if self.until is Until.MESSAGE:
            became = "the message goes on without its caller"
            if not self._heard:
                became = "it is not known whether the message was taken; send it again by the same id"
            message = f"the agent was not done within {self.timeout_s:g} s; {became}"
        if before:
            message += f"; the attempt before failed: {before.message}"
        return errors.DeadlineExceeded(message, metadata={"before": before.message} if before else None)
