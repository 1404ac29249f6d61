"""Calls in flight at the gateway itself, over gRPC and HTTP: so many of each principal, and always room for this
user's.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from agentruntime.errors import TooManyCalls
from grpc import aio

from uapi_gateway.access.callers import principal_of
from uapi_gateway.access.keys import LOCAL
from uapi_gateway.forwarding import bytes_handler

# Of one principal, and of all but the local one: streams that watch last, and each holds memory.
EACH = 256
ALL = 4096


class InFlight:
    """How many calls of whom; `local` has no limit."""

    def __init__(self, each: int = EACH, all_: int = ALL) -> None:
        self._each = each
        self._all = all_
        self._calls: Counter[str] = Counter()

    def enter(self, principal: str) -> TooManyCalls | None:
        """Counts a call, which is to `leave` then; or why it is not taken."""
        if principal == LOCAL:
            return None
        if refusal := self._refusal(principal):
            return refusal
        self._calls[principal] += 1
        return None

    def leave(self, principal: str) -> None:
        """A call has ended that had entered."""
        if principal == LOCAL:
            return
        self._calls[principal] -= 1
        if not self._calls[principal]:
            del self._calls[principal]

    def _refusal(self, principal: str) -> TooManyCalls | None:
        if self._calls[principal] >= self._each:
            return TooManyCalls(
                f"{principal[:128]} has {self._each} calls in flight at the gateway, which is all that it may; "
                "try again when one has ended"
            )
        if self._calls.total() >= self._all:
            return TooManyCalls(
                f"the gateway has {self._all} calls in flight, which is all that it takes; try again later"
            )
        return None


class Shares(aio.ServerInterceptor):
    """Counts here, not by gRPC's own number, which would refuse `local` what others have taken."""

    def __init__(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        principal = principal_of(handler_call_details.invocation_metadata)
        if refusal := self._in_flight.enter(principal):
            return bytes_handler(handler_call_details.method, _refusing(refusal))
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: self._in_flight.leave(principal))
        return await continuation(handler_call_details)


def _refusing(
    refusal: TooManyCalls,
) -> Callable[[str, AsyncIterator[bytes], aio.ServicerContext[Any, Any]], AsyncIterator[bytes]]:
    async def refuse(
        _method: str, _requests: AsyncIterator[bytes], _context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        raise refusal
        yield b""  # makes it a generator; never reached

    return refuse
