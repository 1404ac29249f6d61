"""Operators' calls on their way to the pool: who makes them is looked up here, and what they do is written down.

Those of this user that only look come to the pool by its socket, past this. What runs, scales or updates an agent is
answered once Envoy knows it and its workers, so that they can be called at once.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from agentruntime import log, status, trace
from agentruntime._proto.uapi.v1 import access_pb2 as access
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from agentruntime.calls import SOME_AGENTS_KEY
from agentruntime.errors import AgentError, Unavailable
from google.protobuf.descriptor import Descriptor
from grpc import aio

from uapi_gateway.access import headers
from uapi_gateway.access.checks import Checks, parsed
from uapi_gateway.access.demand import POOL_NEEDS
from uapi_gateway.access.keys import ALL
from uapi_gateway.access.policy import Caller, Policy, unmet
from uapi_gateway.deployments import demands_of
from uapi_gateway.forwarding import bytes_handler
from uapi_gateway.xds.routes import CHANGING

_log = log.get("uapi_gateway.operators")
# Envoy takes milliseconds. One that is being started again must not hold up an operator.
_LONGEST_WAIT_S = 2.0
# Of what changes something: what is answered by the agent as it is then.
_DEPLOYING = frozenset(path for path in CHANGING if "deployment" in POOL_NEEDS[path][0].output_type.fields_by_name)
_NOT_PASSED = frozenset((headers.PRINCIPAL, *headers.PRIVATE, "user-agent", "te", "content-type", trace.HEADER))


class PoolHandler(grpc.GenericRpcHandler):
    """Handles every method of the pool's services.

    Args:
        channel: to the pool.
        routed: waits until Envoy can route to an agent, for at most so many seconds; says whether it can.
        checks: says who may.
        policy: what is in force now.
    """

    def __init__(
        self,
        channel: aio.Channel,
        routed: Callable[[str, float], Awaitable[bool]],
        checks: Checks,
        policy: Callable[[], Policy],
    ) -> None:
        self._channel = channel
        self._routed = routed
        self._checks = checks
        self._policy = policy

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method not in POOL_NEEDS:
            return None
        return bytes_handler(handler_call_details.method, self._handle)

    async def _handle(
        self, path: str, requests: AsyncIterator[bytes], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        method, need = POOL_NEEDS[path]
        reading = anext(aiter(requests), None)
        await self._checks.admit(method, need, reading, context)
        first = await reading
        checked = await self._checks.check(method, need, parsed(method.input_type, first or b""), context)
        try:
            async for answer in self._passed(path, _again(first, requests), checked.caller, context):
                if path in _DEPLOYING:
                    yield await self._deployed(method.output_type, answer)
                elif need.shown is None:
                    yield answer
                elif (shown := self._checks.shown(checked, parsed(method.output_type, answer))) is not None:
                    yield shown.SerializeToString()
        except AgentError as error:
            await self._checks.failed(checked, error)
            raise

    async def _passed(
        self, path: str, requests: AsyncIterator[bytes], caller: Caller, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        """The call once more, at the pool."""
        metadata = [(key, value) for key, value in context.invocation_metadata() or () if key not in _NOT_PASSED]
        if not caller.may(access.ROLE_OPERATE, ALL):
            metadata.append((SOME_AGENTS_KEY, "1"))
        if context_now := trace.current.get():
            metadata.append((trace.HEADER, context_now.header()))
        start: Any = self._channel.stream_stream(path)
        call = start(requests, metadata=metadata, timeout=context.time_remaining())
        try:
            async for answer in call:
                yield answer
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE and not error.trailing_metadata():
                raise Unavailable(
                    "the pool does not answer; `agent status` says what runs", reason="POOL_UNAVAILABLE"
                ) from error
            raise status.decode(error) from error
        finally:
            if not call.done():
                call.cancel()

    async def _deployed(self, kind: Descriptor, answer: bytes) -> bytes:
        """The answer once Envoy knows the agent; the pool does not know who could call it."""
        message = parsed(kind, answer)
        await self._await_routes(message.deployment)
        demanded = demands_of(message.deployment.settings.access)
        if note := unmet(demanded, message.deployment.agent, self._policy()):
            message.deployment.notes.append(note)
        return bytes(message.SerializeToString())

    async def _await_routes(self, deployment: pool.Deployment) -> None:
        ready = (each.worker_id for each in deployment.workers if each.state == pool.WORKER_STATE_READY)
        time_s = asyncio.get_running_loop().time
        until_s = time_s() + _LONGEST_WAIT_S
        for name in (deployment.agent, *ready):
            if not await self._routed(name, max(0.0, until_s - time_s())):
                _log.warning("envoy does not know an agent or a worker yet", name=name)


async def _again(first: bytes | None, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """All requests, with the one that was read already."""
    if first is not None:
        yield first
        async for message in rest:
            yield message
