"""Whether a worker is well: the decision, and the grpc.health.v1 check that feeds it."""

import asyncio
import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import grpc
from agentruntime.launch import LAG_KEY
from grpc import aio
from grpc_health.v1 import health_pb2

from agent_pool.asked import FailureAction

# One connection per call pattern: no proxy, no name lookup, no retries that would hide what is asked.
_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1))


# A loop blocked for so long is not a slow one: a garbage collection, a busy neighbour.
_FINE_LAG_S = 0.02


@dataclass(frozen=True)
class HealthPolicy:
    """When a worker counts as ready, and as unhealthy."""

    interval_s: float = 10.0
    timeout_s: float = 5.0
    # Failures in a row.
    retries: int = 3
    start_timeout_s: float = 60.0
    # "restart", "stop" or "ignore".
    failure_action: FailureAction = "restart"


class Verdict(StrEnum):
    WELL = "well"
    SICK = "sick"
    # Not enough results to change what was thought before.
    UNDECIDED = "undecided"


def judge(policy: HealthPolicy, results: list[bool]) -> Verdict:
    """What the latest results (oldest first) say. One success makes a worker well."""
    if results and results[-1]:
        return Verdict.WELL
    if len(results) >= policy.retries and not any(results[-policy.retries :]):
        return Verdict.SICK
    return Verdict.UNDECIDED


def weight(lag_s: float) -> int:
    """The share of calls that a worker should get beside others, from 1 to 100.

    All of it while its event loop is never blocked for longer than 20 ms; then the less the longer it is: 50 at
    60 ms, 10 at 0.4 s, 1 from 4 s on.
    """
    return max(1, min(100, round(100 * 2 * _FINE_LAG_S / (_FINE_LAG_S + lag_s))))


@dataclass(frozen=True)
class Answer:
    """To one check."""

    # "" if the worker serves.
    problem: str = ""
    # The longest that its event loop was blocked since the check before, as it says.
    lag_s: float = 0.0


def problem(policy: HealthPolicy, answer: Answer) -> str:
    """Why a check has failed, in a sentence; "" if it has not."""
    if not answer.problem and answer.lag_s > policy.timeout_s:
        return (
            f"its event loop was blocked for {answer.lag_s:.3g}s, longer than a health check may take "
            f"({policy.timeout_s:g}s)"
        )
    return answer.problem


def _lag_s(metadata: Iterable[tuple[str, str | bytes]] | None) -> float:
    """Of an answer's trailing metadata; 0 where it says nothing, or nonsense: the agent's code can write it too."""
    for name, value in metadata or ():
        if name == LAG_KEY:
            with contextlib.suppress(ValueError):
                lag_s = float(value) / 1000
                return lag_s if 0 <= lag_s < math.inf else 0.0
    return 0.0


class HealthProbe:
    """Asks one worker. `close` it."""

    def __init__(self, address: str) -> None:
        self._channel = aio.insecure_channel(address, options=_OPTIONS)
        self._check = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )

    async def ask(self, timeout_s: float) -> Answer:
        """What the worker says of itself, or why it says nothing."""
        call = self._check(health_pb2.HealthCheckRequest(), timeout=timeout_s, wait_for_ready=True)
        try:
            response = await call
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return Answer(f"no answer to a health check in {timeout_s:g}s")
            return Answer(f"health check failed: {error.code().name}")
        lag_s = _lag_s(await call.trailing_metadata())
        if response.status == health_pb2.HealthCheckResponse.SERVING:
            return Answer("", lag_s)
        # The agent's code can answer itself, also what is no status.
        says = response.status
        known = health_pb2.HealthCheckResponse.ServingStatus.DESCRIPTOR.values_by_number.get(says)
        return Answer(f"health check says {known.name if known else says}", lag_s)

    async def until_well(self, deadline_s: float) -> str:
        """Asks until the worker serves or `deadline_s` is over: "" or what was wrong last."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        problem = "it was not asked"
        while (left := end - loop.time()) > 0:
            problem = (await self.ask(left)).problem
            if not problem:
                return ""
            await asyncio.sleep(min(0.02, max(0.0, end - loop.time())))
        return problem

    async def close(self) -> None:
        await self._channel.close()
