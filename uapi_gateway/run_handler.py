"""RunAgent on its way to the pool: it is answered once Envoy knows the agent, so that it can be called at once.

Everything else of AgentPool goes from Envoy to the pool directly.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from agentruntime import log, status, trace
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from agentruntime._proto.uapi.v1 import agent_pool_pb2_grpc
from agentruntime.errors import Unavailable
from grpc import aio

from uapi_gateway.xds.routes import RUN_AGENT

_log = log.get("uapi_gateway.run_handler")
# Envoy takes milliseconds. One that is being started again must not hold up an operator.
_LONGEST_WAIT_S = 2.0


class RunHandler(grpc.GenericRpcHandler):
    """Handles `AgentPool.RunAgent` alone.

    Args:
        channel: to the pool.
        routed: waits until Envoy can route to an agent, for at most so many seconds; says whether it can.
    """

    def __init__(self, channel: aio.Channel, routed: Callable[[str, float], Awaitable[bool]]) -> None:
        self._stub: agent_pool_pb2_grpc.AgentPoolAsyncStub = agent_pool_pb2_grpc.AgentPoolStub(channel)
        self._routed = routed

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method != RUN_AGENT:
            return None
        return grpc.unary_unary_rpc_method_handler(
            self._run, pool.RunAgentRequest.FromString, pool.RunAgentResponse.SerializeToString
        )

    async def _run(
        self, request: pool.RunAgentRequest, context: aio.ServicerContext[Any, Any]
    ) -> pool.RunAgentResponse:
        context_now = trace.current.get()
        metadata = ((trace.HEADER, context_now.header()),) if context_now else ()
        try:
            response = await self._stub.RunAgent(request, timeout=context.time_remaining(), metadata=metadata)
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE and not error.trailing_metadata():
                raise Unavailable(
                    "the pool does not answer; `agent status` says what runs", reason="POOL_UNAVAILABLE"
                ) from error
            raise status.decode(error) from error
        if not await self._routed(response.deployment.agent, _LONGEST_WAIT_S):
            _log.warning("envoy does not know a new agent yet", agent=response.deployment.agent)
        return response
