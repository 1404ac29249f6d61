"""W3C trace context (https://www.w3.org/TR/trace-context/): made by the client, carried in gRPC metadata.

The platform neither samples nor exports here; it makes sure that one id joins a call's log lines everywhere.
"""

import re
import secrets
from contextvars import ContextVar
from dataclasses import dataclass

HEADER = "traceparent"
_PATTERN = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


@dataclass(frozen=True)
class TraceContext:
    """One span of one trace. `trace_id` is 32 hex digits, `span_id` 16."""

    trace_id: str
    span_id: str
    flags: str = "00"

    @classmethod
    def new(cls) -> "TraceContext":
        """A span in a trace of its own."""
        return cls(secrets.token_hex(16), secrets.token_hex(8))

    @classmethod
    def parse(cls, header: str) -> "TraceContext | None":
        """The context in a `traceparent` header, or None if it is not one."""
        match = _PATTERN.fullmatch(header.strip())
        if match is None or not int(match[1], 16) or not int(match[2], 16):
            return None
        return cls(*match.groups())

    def child(self) -> "TraceContext":
        """A new span in the same trace."""
        return TraceContext(self.trace_id, secrets.token_hex(8), self.flags)

    def header(self) -> str:
        """The `traceparent` header's value."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


current: ContextVar[TraceContext | None] = ContextVar("trace", default=None)


def enter(header: str | None) -> TraceContext:
    """Makes the caller's trace current, as a new span of it; a new trace where the caller sent none."""
    caller = TraceContext.parse(header) if header else None
    context = caller.child() if caller else TraceContext.new()
    current.set(context)
    return context
