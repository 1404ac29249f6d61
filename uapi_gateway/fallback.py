"""Answers the calls that name no agent and no service of the gateway: says why they cannot be routed."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from agentruntime import errors, interceptors
from grpc import aio

from uapi_gateway.access.keys import ALL
from uapi_gateway.forwarding import bytes_handler
from uapi_gateway.reflection import Visible, everyone
from uapi_gateway.registry import Registry
from uapi_gateway.xds.routes import AGENT_HEADER


def explain(registry: Registry, method: str, seen: Callable[[str], bool] = lambda _agent: True) -> errors.AgentError:
    """The error for a call that Envoy could send to no agent.

    Args:
        registry: the agents.
        method: "/service/Method".
        seen: says of an agent whether the caller may know of it; of "*", whether of all.
    """
    service = method.strip("/").rpartition("/")[0]
    every = registry.serving(service)
    candidates = [agent.agent_id for agent in every if seen(agent.agent_id)]
    if candidates and len(every) > 1:
        return errors.AgentAmbiguous(
            f"{service} is served by more than one agent; name one in {AGENT_HEADER}: {', '.join(candidates)}",
            metadata={"service": service, "candidates": ",".join(candidates)},
        )
    if candidates:
        # The route to the only one is on its way to Envoy.
        return errors.AgentNotReady(f"agent '{candidates[0]}' has just arrived; try again")
    if not seen(ALL):
        return errors.PermissionDenied(
            f"none of the agents that you may call serves {service or method}", reason="NOT_PERMITTED"
        )
    return errors.Unimplemented(
        f"no agent serves {service or method}; `agent ps` lists what runs",
        reason="SERVICE_NOT_FOUND",
        metadata={"service": service},
    )


class FallbackHandler(grpc.GenericRpcHandler):
    """The last handler of the control socket. Only services that no handler before it knows come here."""

    def __init__(self, registry: Registry, visible: Visible = everyone) -> None:
        self._registry = registry
        self._visible = visible

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return bytes_handler(handler_call_details.method, self._refuse)

    async def _refuse(
        self, method: str, _requests: AsyncIterator[bytes], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        await interceptors.abort(context, explain(self._registry, method, self._visible(context)), method)
        yield b""  # makes it a generator; never reached
