"""The grace period that a verb gives calls in flight."""

from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration

from agentruntime import wire
from agentruntime.errors import InvalidArgument
from agentruntime.units import parse_duration

DEFAULT_S = 30.0
_LONGEST_S = 3600.0

Grace = Annotated[str | None, typer.Option(help="Time for calls in flight, like 10s; 30s by default.")]


def period(grace: str | None) -> Duration | None:
    """The message for what was written; None for the default.

    Raises:
        InvalidArgument: it is no duration, or longer than an hour.
    """
    if grace is None:
        return None
    seconds = parse_duration(grace)
    if seconds > _LONGEST_S:
        raise InvalidArgument(f"--grace: {grace} is too long; an hour is the most")
    return wire.duration(seconds)
