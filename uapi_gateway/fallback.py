"""Answers the calls that name no agent and no service of the gateway: says why they cannot be routed."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from agentruntime import errors, interceptors
from grpc import aio

from uapi_gateway.forwarding import bytes_handler
from uapi_gateway.registry import Registry
from uapi_gateway.xds.routes import AGENT_HEADER


def explain(registry: Registry, method: str) -> errors.AgentError:
    """The error for a call of `method` ("/service/Method") that Envoy could send to no agent."""
    service = method.strip("/").rpartition("/")[0]
    candidates = [agent.agent_id for agent in registry.serving(service)]
    if len(candidates) > 1:
        return errors.AgentAmbiguous(
            f"{len(candidates)} agents serve {service}: {', '.join(candidates)}; name one in {AGENT_HEADER}",
            metadata={"service": service, "candidates": ",".join(candidates)},
        )
    if candidates:
        # The route to the only one is on its way to Envoy.
        return errors.AgentNotReady(f"agent '{candidates[0]}' has just arrived; try again")
    return errors.Unimplemented(
        f"no agent serves {service or method}; `agent ps` lists what runs",
        reason="SERVICE_NOT_FOUND",
        metadata={"service": service},
    )


class FallbackHandler(grpc.GenericRpcHandler):
    """The last handler of the control socket. Only services that no handler before it knows come here."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return bytes_handler(handler_call_details.method, self._refuse)

    async def _refuse(
        self, method: str, _requests: AsyncIterator[bytes], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        await interceptors.abort(context, explain(self._registry, method), method)
        yield b""  # makes it a generator; never reached
