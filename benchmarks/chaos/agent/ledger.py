"""An agent that writes each call that must not run twice into a file outside its worker, before the call's effect.

The file is the worker's log: its standard output is a file of the host's, opened for appending (O_APPEND), which no
pipe and no other process stands before. What was written and synced is there however the worker ends.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import ledger_pb2
import ledger_pb2_grpc

_STDOUT = 1
# How long a call takes beside what it writes, so that a kill finds some in flight.
_READ_S, _APPEND_S = 0.01, 0.03
_FOLLOW_INTERVAL_S = 0.5


class LedgerAgent(ledger_pb2_grpc.LedgerServicer):
    async def Read(self, request: Any, context: Any) -> Any:
        await asyncio.sleep(_READ_S)
        return ledger_pb2.ReadResponse(id=request.id)

    async def Append(self, request: Any, context: Any) -> Any:
        await asyncio.to_thread(_write_down, request.id)
        await asyncio.sleep(_APPEND_S)
        return ledger_pb2.AppendResponse(id=request.id)

    async def Follow(self, request: Any, context: Any) -> AsyncIterator[Any]:
        number = 0
        while True:
            yield ledger_pb2.FollowResponse(number=number)
            number += 1
            await asyncio.sleep(_FOLLOW_INTERVAL_S)


def _write_down(call_id: str) -> None:
    os.write(_STDOUT, f"ran {call_id} {os.getpid()}\n".encode())
    os.fsync(_STDOUT)
