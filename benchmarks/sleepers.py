"""Puts agents to sleep and wakes them by a call, with proof that there was nothing left to answer it."""

import asyncio
import time

import grpc
from agentruntime._proto.uapi.v1 import (
    agent_pool_pb2,
    agent_pool_pb2_grpc,
    text_generation_pb2,
    text_generation_pb2_grpc,
)
from grpc import aio

from benchmarks import presence
from benchmarks.platform import Platform

_TIMEOUT_S = 60
_ENDED_TIMEOUT_S = 15.0
_POLL_S = 0.02
_PROMPT = "wake up"


class Sleepers:
    """Agents of one platform, called through its gateway."""

    def __init__(
        self, running: Platform, pool: "agent_pool_pb2_grpc.AgentPoolAsyncStub", channel: aio.Channel
    ) -> None:
        self._running = running
        self._pool = pool
        self._text = text_generation_pb2_grpc.TextGenerationServiceStub(channel)

    async def put_to_sleep(self, agent: str) -> presence.Presence:
        """Returns once the agent has neither worker nor spare; what it still has."""
        await self._pool.ScaleAgent(agent_pool_pb2.ScaleAgentRequest(agent=agent, replicas=0), timeout=_TIMEOUT_S)
        deadline = time.monotonic() + _ENDED_TIMEOUT_S
        while True:
            left = await asyncio.to_thread(presence.of_agent, self._running, agent)
            if not left.forked and await self._is_asleep(agent):
                return left
            if time.monotonic() > deadline:
                raise SystemExit(f"{agent} is not gone {_ENDED_TIMEOUT_S:g} s after it was put to sleep")
            await asyncio.sleep(_POLL_S)

    async def _is_asleep(self, agent: str) -> bool:
        """Whether the pool says so, too: it may hear of the last worker's end a moment after /proc has lost it."""
        request = agent_pool_pb2.GetDeploymentRequest(agent=agent)
        found = (await self._pool.GetDeployment(request, timeout=_TIMEOUT_S)).deployment
        return found.asleep and not any(worker.pid for worker in found.workers)

    async def wake(self, agent: str, *, template: bool) -> float:
        """Milliseconds from a call on an agent that has no process to its answer.

        Args:
            template: whether its template must be there; it must not otherwise.
        """
        found = await asyncio.to_thread(presence.of_agent, self._running, agent)
        if found.forked or bool(found.templates) is not template:
            raise SystemExit(f"{agent} should have {'its template only' if template else 'no process'}, has {found}")
        return await self.call(agent)

    async def call(self, agent: str) -> float:
        """Milliseconds from a call to its answer."""
        request = text_generation_pb2.GenerateTextRequest(prompt=_PROMPT)
        started = time.perf_counter()
        try:
            response = await self._text.GenerateText(request, metadata=(("x-uapi-agent", agent),), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise SystemExit(f"{agent} did not answer: {error.code().name} {error.details()}") from error
        elapsed = time.perf_counter() - started
        if response.text != _PROMPT:
            raise SystemExit(f"a wrong answer: {response.text!r}")
        return elapsed * 1000
