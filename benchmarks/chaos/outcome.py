"""What the load, the conductor and the verdict tell each other: calls, streams, kills and phases.

All times are of CLOCK_MONOTONIC, which all processes of a machine share, in seconds.
"""

from dataclasses import dataclass

OK = "OK"
PLAIN, SDK = "plain", "sdk"


@dataclass(frozen=True)
class Call:
    """A unary call, as its client saw it."""

    # PLAIN or SDK.
    client: str
    idempotent: bool
    call_id: str
    began_at: float
    ended_at: float
    # The name of a gRPC status.
    code: str
    # Of google.rpc.ErrorInfo, as the SDK gives it; "" at a plain client.
    reason: str = ""
    message: str = ""

    @property
    def failed(self) -> bool:
        return self.code != OK


@dataclass(frozen=True)
class Stream:
    """A stream that ended before its client hung up."""

    client: str
    ended_at: float
    code: str
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Outcome:
    """Everything that the clients saw."""

    calls: list[Call]
    cuts: list[Stream]
    # That were open and had answered at the end.
    streams: int


@dataclass(frozen=True)
class Kill:
    """One SIGKILL."""

    # "worker", "pool", "gateway", "envoy" or "template".
    what: str
    pid: int
    at: float
    # When the process had ended.
    gone_at: float
    # When its replacement was ready; None if it never was.
    back_at: float | None = None


@dataclass(frozen=True)
class Phase:
    """A part of the run."""

    name: str
    began_at: float
    ended_at: float

    def has(self, at: float) -> bool:
        return self.began_at <= at < self.ended_at
