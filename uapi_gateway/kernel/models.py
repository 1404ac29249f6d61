"""ModelService: lets agents that may use it have a model generate, in an agent of the platform's own.

The gateway infers nothing itself: it looks whether the caller may, sees that the model's agent runs, and passes on
what that says. Whoever operates that agent (`agent scale`, `agent stop`) operates the model.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from agentruntime import errors, log, status, trace
from agentruntime._proto.uapi.v1 import (
    agent_pool_pb2,
    agent_pool_pb2_grpc,
    model_service_pb2_grpc,
    text_generation_pb2_grpc,
)
from agentruntime._proto.uapi.v1 import model_service_pb2 as proto
from agentruntime._proto.uapi.v1 import text_generation_pb2 as text
from agentruntime._proto.uapi.v1.system_calls_pb2 import PERMISSION_KIND_MODEL
from grpc import aio

from uapi_gateway.access import headers
from uapi_gateway.kernel import permissions
from uapi_gateway.kernel.audit import AuditLog
from uapi_gateway.kernel.caller import Caller, caller_of
from uapi_gateway.kernel.system_calls import AGENT_KEY, known, record_denial
from uapi_gateway.registry import Registry

_log = log.get("uapi_gateway.models")
# Envoy takes milliseconds to hear of a new agent.
_LONGEST_ROUTE_S = 2.0


@dataclass(frozen=True)
class Served:
    """Which agent serves a model, and of which image it is made if there is none."""

    agent: str
    image: str


MODELS: Final[Mapping[str, Served]] = {"smollm2": Served("model-smollm2", "text-generator:latest")}


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """The service.

    Args:
        registry: the agents.
        audit: where it is recorded who was refused, and for whom a model's agent was begun.
        pool: a channel to it.
        agents: a channel to agents, on which the gateway says who calls.
        routed: waits until Envoy can route to an agent, for at most so many seconds.
    """

    def __init__(
        self,
        registry: Registry,
        audit: AuditLog,
        *,
        pool: aio.Channel,
        agents: aio.Channel,
        routed: Callable[[str, float], Awaitable[bool]],
    ) -> None:
        self._registry = registry
        self._audit = audit
        self._pool: agent_pool_pb2_grpc.AgentPoolAsyncStub = agent_pool_pb2_grpc.AgentPoolStub(pool)
        self._text: text_generation_pb2_grpc.TextGenerationServiceAsyncStub
        self._text = text_generation_pb2_grpc.TextGenerationServiceStub(agents)
        self._routed = routed
        # The beginnings of models' agents that are under way, by the agent.
        self._beginnings: dict[str, asyncio.Task[None]] = {}

    async def Generate(
        self, request: proto.GenerateRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[proto.GenerateResponse]:
        caller = caller_of(context.invocation_metadata())
        served = await self._permitted(caller, request.model)
        try:
            await self._begun(served, caller)
            # Closed at once when the caller hangs up, and not when the collector finds it.
            async with aclosing(self._generated(served, caller, request, context.time_remaining())) as pieces:
                async for piece in pieces:
                    yield proto.GenerateResponse(text=piece.text, tokens=piece.tokens_used)
        except (errors.AgentFailed, errors.AgentStopped) as error:
            raise _not_ready(request.model, served, error) from error

    async def _permitted(self, caller: Caller, model: str) -> Served:
        """What serves the model, if the caller may use it.

        Raises:
            PermissionDenied: it may not; that is recorded then.
            NotFound: it may, and there is no such model.
        """
        try:
            permissions.require(known(self._registry, caller), PERMISSION_KIND_MODEL, model)
        except errors.PermissionDenied as error:
            await record_denial(self._audit, caller, "model", model, error)
            raise
        if model not in MODELS:
            raise errors.NotFound(
                f"there is no model '{model}'; the platform has {', '.join(MODELS)}", reason="MODEL_NOT_FOUND"
            )
        return MODELS[model]

    async def _begun(self, served: Served, caller: Caller) -> None:
        """Has the pool run the model's agent if it never did; one that sleeps is woken by the call itself.

        Raises:
            AgentError: as RunAgent's.
        """
        there = self._registry.get(served.agent)
        # One that registered itself from outside would be shown what agents ask.
        if there is not None and there.lease is None:
            return
        beginning = self._beginnings.get(served.agent)
        if beginning is None:
            beginning = asyncio.create_task(self._begin(served, caller))
            # Its failure counts as seen, although all that waited for it may have gone.
            beginning.add_done_callback(lambda done: done.cancelled() or done.exception())
            beginning.add_done_callback(lambda _: self._beginnings.pop(served.agent))
            self._beginnings[served.agent] = beginning
        # Goes on if its caller hangs up: others may wait for it.
        await asyncio.shield(beginning)

    async def _begin(self, served: Served, caller: Caller) -> None:
        request = agent_pool_pb2.RunAgentRequest(
            image=served.image,
            agent=served.agent,
            # It comes with the platform, engine and weights included: nothing is to be built for a container.
            settings=agent_pool_pb2.AgentSettings(mode=agent_pool_pb2.RUNTIME_MODE_NATIVE),
        )
        _log.info("a model is begun", agent=served.agent, by=caller.agent)
        try:
            await self._pool.RunAgent(request)
        except aio.AioRpcError as error:
            raise status.decode(error) from error
        await self._audit.record(
            principal=caller.principal,
            action="AgentPool/RunAgent",
            target=served.agent,
            outcome="allowed",
            worker_id=caller.worker_id,
        )
        if not await self._routed(served.agent, _LONGEST_ROUTE_S):
            _log.warning("envoy does not know a new agent yet", agent=served.agent)

    async def _generated(
        self, served: Served, caller: Caller, request: proto.GenerateRequest, timeout_s: float | None
    ) -> AsyncGenerator[text.StreamTextResponse, None]:
        """What the model's agent says.

        Raises:
            AgentError: as it failed.
        """
        # That the caller may use the model is known; it need not be allowed to call its agent.
        metadata = [(AGENT_KEY, served.agent), (headers.PRINCIPAL, caller.principal), (headers.GRANTED, "1")]
        if context_now := trace.current.get():
            metadata.append((trace.HEADER, context_now.header()))
        asked = text.StreamTextRequest(
            prompt=request.prompt, temperature=request.temperature, max_tokens=request.max_tokens
        )
        call = self._text.StreamText(asked, metadata=metadata, timeout=timeout_s)
        try:
            async for piece in call:
                yield piece
        except aio.AioRpcError as error:
            raise status.decode(error) from error
        finally:
            call.cancel()


def _not_ready(model: str, served: Served, error: errors.AgentError) -> errors.FailedPrecondition:
    """The error of a model whose agent does not run."""
    why = error.message
    if isinstance(error, errors.AgentFailed):
        # Its traceback ends with what went wrong.
        last = error.message.strip().splitlines()[-1].strip()
        why = f"{last}; install its engine and weights where agents run, `agent doctor` there says how"
    return errors.FailedPrecondition(
        f"model '{model}' cannot run: {why}",
        reason="MODEL_NOT_READY",
        metadata={"model": model, "agent": served.agent},
    )
