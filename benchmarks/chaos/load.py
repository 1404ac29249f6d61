"""`python -m benchmarks.chaos.load`: the callers of `make chaos`, in a process of their own.

Calls at a fixed rate, each at its time whether those before it have been answered or not, and holds streams open; one
half by a plain generated client, one by the SDK's. Runs until its standard input ends, then writes what it saw.
"""

import argparse
import asyncio
import importlib
import itertools
import json
import math
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
from agentruntime import errors, status
from agentruntime.client import AsyncClient
from grpc import aio

from benchmarks.chaos.outcome import OK, PLAIN, SDK, Call, Outcome, Stream

AGENT = "ledger"
# Calls a second of each client: idempotent, not idempotent. Together 200.
_RATES = {True: 70.0, False: 30.0}
_STREAMS = 25
_TIMEOUT_S = 10.0
_REOPEN_S = 0.05
# Should whoever started this be gone without a word.
_LONGEST_S = 300.0


class Load:
    """The callers of one run."""

    def __init__(self, stubs: dict[str, Any], messages: Any) -> None:
        self._stubs = stubs
        self._messages = messages
        self._calls: list[Call] = []
        self._cuts: list[Stream] = []
        self._open = 0
        self._in_flight: set[asyncio.Task[None]] = set()

    async def run(self, until: Awaitable[Any], started: Callable[[], None]) -> Outcome:
        streams = [asyncio.create_task(self._follow(client)) for client in self._stubs for _ in range(_STREAMS)]
        while self._open < len(streams):
            await asyncio.sleep(0.01)
        started()
        pacers = [
            asyncio.create_task(self._pace(client, idempotent, rate))
            for client in self._stubs
            for idempotent, rate in _RATES.items()
        ]
        await until
        for pacer in pacers:
            pacer.cancel()
        if self._in_flight:
            await asyncio.wait(self._in_flight)
        outcome = Outcome(self._calls, list(self._cuts), self._open)
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*pacers, *streams, return_exceptions=True)
        return outcome

    async def _pace(self, client: str, idempotent: bool, rate: float) -> None:
        began_at = time.monotonic()
        for number in itertools.count():
            await asyncio.sleep(max(0.0, began_at + number / rate - time.monotonic()))
            call = asyncio.create_task(self._call(client, idempotent, number))
            self._in_flight.add(call)
            call.add_done_callback(self._in_flight.discard)

    async def _call(self, client: str, idempotent: bool, number: int) -> None:
        stub = self._stubs[client]
        call_id = f"{client}-{'read' if idempotent else 'append'}-{number}"
        began_at = time.monotonic()
        code, reason, message = OK, "", ""
        try:
            if idempotent:
                answer = await stub.Read(self._messages.ReadRequest(id=call_id), timeout=_TIMEOUT_S)
            else:
                answer = await stub.Append(self._messages.AppendRequest(id=call_id), timeout=_TIMEOUT_S)
            if answer.id != call_id:
                code, message = "WRONG", f"the answer to {answer.id}"
        except (grpc.RpcError, errors.AgentError) as error:
            code, reason, message = _told(error)
        self._calls.append(Call(client, idempotent, call_id, began_at, time.monotonic(), code, reason, message))

    async def _follow(self, client: str) -> None:
        while True:
            expected = 0
            code, reason, message = OK, "", "the stream ended by itself"
            try:
                async for answer in self._stubs[client].Follow(self._messages.FollowRequest(), timeout=math.inf):
                    if answer.number != expected:
                        code, message = "WRONG", f"{answer.number} after {expected - 1}"
                        break
                    self._open += not expected
                    expected += 1
            except (grpc.RpcError, errors.AgentError) as error:
                code, reason, message = _told(error)
            self._open -= bool(expected)
            self._cuts.append(Stream(client, time.monotonic(), code, reason, message))
            await asyncio.sleep(_REOPEN_S)


class _Plain:
    """A generated stub of a plain channel, with the metadata that names the agent and nothing else of ours."""

    def __init__(self, address: str, stub: Any) -> None:
        # Not one that another channel to the same address has open.
        self._stub = stub(aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]))

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._stub, method)

        def named(request: Any, timeout: float) -> Any:
            wait_s = None if math.isinf(timeout) else timeout
            return call(request, timeout=wait_s, metadata=(("x-uapi-agent", AGENT),))

        return named


def _told(error: Exception) -> tuple[str, str, str]:
    """Code, reason and message of a failed call."""
    if isinstance(error, errors.AgentError):
        return status.code_of(error).name, error.reason, error.message
    assert isinstance(error, aio.AioRpcError)
    return error.code().name, "", error.details() or ""


async def _main(address: str, generated: Path, result: Path) -> None:
    sys.path.insert(0, str(generated))
    messages = importlib.import_module("ledger_pb2")
    stub = importlib.import_module("ledger_pb2_grpc").LedgerStub
    until = asyncio.to_thread(sys.stdin.read)
    async with AsyncClient(address, token="") as sdk:
        load = Load({PLAIN: _Plain(address, stub), SDK: sdk.agent(AGENT).stub(stub)}, messages)
        async with asyncio.timeout(_LONGEST_S):
            outcome = await load.run(until, lambda: print("started", flush=True))
    result.write_text(json.dumps(asdict(outcome)))


def read(result: Path) -> Outcome:
    """What a load has written."""
    written = json.loads(result.read_text())
    return Outcome(
        [Call(**each) for each in written["calls"]], [Stream(**each) for each in written["cuts"]], written["streams"]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos.load", description=__doc__)
    parser.add_argument("address")
    parser.add_argument("generated", type=Path, help="where ledger_pb2.py is")
    parser.add_argument("result", type=Path, help="the file to write")
    given = parser.parse_args()
    asyncio.run(_main(given.address, given.generated, given.result))
