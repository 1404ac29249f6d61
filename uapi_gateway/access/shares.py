"""Calls in flight at the gateway's own services: so many of each principal, and always room for this user's."""

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


class Shares(aio.ServerInterceptor):
    """Counts here, not by gRPC's own number, which would refuse `local` what others have taken."""

    def __init__(self, each: int = EACH, all_: int = ALL) -> None:
        self._each = each
        self._all = all_
        self._in_flight: Counter[str] = Counter()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        principal = principal_of(handler_call_details.invocation_metadata)
        if principal != LOCAL:
            if refusal := self._refusal(principal):
                return bytes_handler(handler_call_details.method, _refusing(refusal))
            self._in_flight[principal] += 1
            task = asyncio.current_task()
            assert task is not None
            task.add_done_callback(lambda _: self._leave(principal))
        return await continuation(handler_call_details)

    def _refusal(self, principal: str) -> TooManyCalls | None:
        if self._in_flight[principal] >= self._each:
            return TooManyCalls(
                f"{principal[:128]} has {self._each} calls in flight at the gateway, which is all that it may; "
                "try again when one has ended"
            )
        if self._in_flight.total() >= self._all:
            return TooManyCalls(
                f"the gateway has {self._all} calls in flight, which is all that it takes; try again later"
            )
        return None

    def _leave(self, principal: str) -> None:
        self._in_flight[principal] -= 1
        if not self._in_flight[principal]:
            del self._in_flight[principal]


def _refusing(
    refusal: TooManyCalls,
) -> Callable[[str, AsyncIterator[bytes], aio.ServicerContext[Any, Any]], AsyncIterator[bytes]]:
    async def refuse(
        _method: str, _requests: AsyncIterator[bytes], _context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        raise refusal
        yield b""  # makes it a generator; never reached

    return refuse
