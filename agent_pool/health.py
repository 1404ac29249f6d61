"""Whether a worker is well: the decision, and the grpc.health.v1 check that feeds it."""

import asyncio
from dataclasses import dataclass
from enum import StrEnum

import grpc
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


class HealthProbe:
    """Asks one worker. `close` it."""

    def __init__(self, address: str) -> None:
        self._channel = aio.insecure_channel(address, options=_OPTIONS)
        self._check = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )

    async def ask(self, timeout_s: float) -> str:
        """ "" if the worker serves, else what is wrong in a few words."""
        try:
            response = await self._check(health_pb2.HealthCheckRequest(), timeout=timeout_s, wait_for_ready=True)
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"no answer to a health check in {timeout_s:g}s"
            return f"health check failed: {error.code().name}"
        if response.status == health_pb2.HealthCheckResponse.SERVING:
            return ""
        return f"health check says {health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)}"

    async def until_well(self, deadline_s: float) -> str:
        """Asks until the worker serves or `deadline_s` is over: "" or what was wrong last."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        problem = "it was not asked"
        while (left := end - loop.time()) > 0:
            problem = await self.ask(left)
            if not problem:
                return ""
            await asyncio.sleep(min(0.02, max(0.0, end - loop.time())))
        return problem

    async def close(self) -> None:
        await self._channel.close()
