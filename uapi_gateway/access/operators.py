"""Operators' calls on their way to the pool: who makes them is looked up here, and what they do is written down.

Those of this user come to the pool by its socket, past this; only `RunAgent` always comes this way, for its answer
waits until Envoy knows the agent, so that it can be called at once.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import grpc
from agentruntime import log, status, trace
from agentruntime.errors import AgentError, InvalidArgument, Unavailable
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import DecodeError
from grpc import aio

from uapi_gateway.access import headers
from uapi_gateway.access.callers import caller_of, refusal
from uapi_gateway.access.demand import ANY, NEEDS, Need
from uapi_gateway.access.keys import ALL
from uapi_gateway.access.policy import Caller, Policy
from uapi_gateway.forwarding import bytes_handler
from uapi_gateway.registry import Registry
from uapi_gateway.xds.routes import RUN_AGENT

_log = log.get("uapi_gateway.operators")
# Envoy takes milliseconds. One that is being started again must not hold up an operator.
_LONGEST_WAIT_S = 2.0
_NOT_PASSED = frozenset((headers.PRINCIPAL, *headers.PRIVATE, "user-agent", "te", "content-type", trace.HEADER))


class Audit(Protocol):
    """Where what is done, and what is refused, is written down."""

    async def record(
        self, *, principal: str, action: str, target: str, outcome: str, detail: str = "", worker_id: str = ""
    ) -> None:
        """On disk when it returns."""


class LogAudit:
    """Writes it into the gateway's log."""

    async def record(
        self, *, principal: str, action: str, target: str, outcome: str, detail: str = "", worker_id: str = ""
    ) -> None:
        _log.info(
            "audit",
            principal=principal,
            action=action,
            target=target,
            outcome=outcome,
            detail=detail,
            worker_id=worker_id,
        )


class PoolHandler(grpc.GenericRpcHandler):
    """Handles every method of the pool's services.

    Args:
        channel: to the pool.
        routed: waits until Envoy can route to an agent, for at most so many seconds; says whether it can.
        registry: knows whose worker a name is.
        policy: what is in force now.
        audit: where it is written down.
    """

    def __init__(
        self,
        channel: aio.Channel,
        routed: Callable[[str, float], Awaitable[bool]],
        registry: Registry,
        policy: Callable[[], Policy],
        audit: Audit,
    ) -> None:
        self._channel = channel
        self._routed = routed
        self._registry = registry
        self._policy = policy
        self._audit = audit

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method not in NEEDS:
            return None
        return bytes_handler(handler_call_details.method, self._handle)

    async def _handle(
        self, path: str, requests: AsyncIterator[bytes], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        method, need = NEEDS[path]
        caller = caller_of(context.invocation_metadata(), self._policy())
        first = await anext(aiter(requests), None)
        names = need.names(_parsed(method.input_type, first or b""))
        try:
            self.check(caller, need, names)
        except AgentError as error:
            await self._write(caller, method, names, "denied", error.message)
            raise
        changes = method.GetOptions().idempotency_level != MethodOptions.NO_SIDE_EFFECTS
        if changes:
            # Before it is passed on: a caller that hangs up leaves no gap.
            await self._write(caller, method, names, "allowed")
        failed = ""
        try:
            async for answer in self._passed(path, _again(first, requests), context):
                if path == RUN_AGENT:
                    await self._await_routes(_parsed(method.output_type, answer).deployment.agent)
                shown = self._shown(caller, method, need, answer)
                if shown is not None:
                    yield shown
        except AgentError as error:
            failed = error.message
            raise
        finally:
            if changes and failed:
                await self._write(caller, method, names, "failed", failed)

    def check(self, caller: Caller, need: Need, names: tuple[str, ...]) -> None:
        """Whether the caller may do that with those.

        Raises:
            PermissionDenied: it has not the role for them.
            Unauthenticated: it has shown no credential.
        """
        agents = tuple(self._agent(name) for name in names)
        if agents == ANY:
            allowed = any(grant.role >= need.role and grant.agents for grant in caller.grants)
        else:
            allowed = all(caller.may(need.role, agent) for agent in agents)
        if not allowed:
            raise refusal(caller, need.role, names or (ALL,))

    def _agent(self, name: str) -> str:
        target = self._registry.find(name)
        return target.agent.agent_id if target else name

    def _shown(self, caller: Caller, method: MethodDescriptor, need: Need, answer: bytes) -> bytes | None:
        """What the caller sees of an answer."""
        if need.shown is None or caller.may(need.role, ALL):
            return answer
        shown = need.shown(_parsed(method.output_type, answer), lambda agent: caller.may(need.role, agent))
        return None if shown is None else shown.SerializeToString()

    async def _passed(
        self, path: str, requests: AsyncIterator[bytes], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        """The call once more, at the pool: its answers, metadata and status."""
        metadata = [(key, value) for key, value in context.invocation_metadata() or () if key not in _NOT_PASSED]
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

    async def _await_routes(self, agent: str) -> None:
        if not await self._routed(agent, _LONGEST_WAIT_S):
            _log.warning("envoy does not know a new agent yet", agent=agent)

    async def _write(
        self, caller: Caller, method: MethodDescriptor, names: tuple[str, ...], outcome: str, detail: str = ""
    ) -> None:
        agents = {name: self._agent(name) for name in names}
        await self._audit.record(
            principal=caller.principal,
            action=method.name,
            target=", ".join(agents.values()),
            outcome=outcome,
            detail=detail,
            worker_id=next((name for name, agent in agents.items() if name != agent), ""),
        )


def _parsed(kind: Any, message: bytes) -> Any:
    """A message by its type.

    Raises:
        InvalidArgument: the bytes are none.
    """
    try:
        return message_factory.GetMessageClass(kind).FromString(message)
    except DecodeError:
        raise InvalidArgument(f"the request is not a {kind.full_name}") from None


async def _again(first: bytes | None, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first is not None:
        yield first
        async for message in rest:
            yield message
