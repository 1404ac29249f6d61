"""SystemCallService, and the refusal of whatever else a worker called on its socket and may not."""

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Final

import grpc
from agentruntime import calls, errors, interceptors
from agentruntime._proto.uapi.v1 import model_service_pb2_grpc, system_calls_pb2_grpc
from agentruntime._proto.uapi.v1 import system_calls_pb2 as proto
from agentruntime.intake import IntakeInterceptor
from grpc import aio

from uapi_gateway import descriptors
from uapi_gateway.forwarding import bytes_handler
from uapi_gateway.kernel import permissions
from uapi_gateway.kernel.audit import AuditLog
from uapi_gateway.kernel.caller import MOST_HOPS, Caller, caller_of
from uapi_gateway.registry import Agent, Registry

# Of a worker's name, names.worker_id.
_NUMBER = re.compile(r"-[0-9]{2,}$")
AGENT_KEY = "x-uapi-agent"
# As what a use is recorded.
_ACTIONS: Final[Mapping["proto.PermissionKind.ValueType", str]] = {
    proto.PERMISSION_KIND_AGENT: "call",
    proto.PERMISSION_KIND_MODEL: "model",
    proto.PERMISSION_KIND_TOPIC: "topic",
    proto.PERMISSION_KIND_TOOL: "tool",
    proto.PERMISSION_KIND_EGRESS: "egress",
    proto.PERMISSION_KIND_SECRET: "secret",
}
# Of requests, at a time.
_HELD_BYTES = 64 * 2**20
_Context = aio.ServicerContext[Any, Any]


def server(registry: Registry, audit: AuditLog, models: model_service_pb2_grpc.ModelServiceServicer) -> aio.Server:
    """What answers on the kernel socket."""
    own = aio.server(interceptors=[interceptors.ServerInterceptor(), IntakeInterceptor(_HELD_BYTES)])
    system_calls_pb2_grpc.add_SystemCallServiceServicer_to_server(SystemCallService(registry, audit), own)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(models, own)
    own.add_generic_rpc_handlers((RefusalHandler(registry, audit),))
    return own


class SystemCallService(system_calls_pb2_grpc.SystemCallServiceServicer):
    """What every worker may ask."""

    def __init__(self, registry: Registry, audit: AuditLog) -> None:
        self._registry = registry
        self._audit = audit

    async def GetSelf(self, _request: proto.GetSelfRequest, context: _Context) -> proto.GetSelfResponse:
        caller = caller_of(context.invocation_metadata())
        agent = known(self._registry, caller)
        found = ((kind, permissions.held(agent, kind)) for kind in permissions.KEYS)
        return proto.GetSelfResponse(
            agent=caller.agent,
            worker_id=caller.worker_id,
            revision=caller.revision,
            permissions=[proto.HeldPermission(kind=kind, names=names) for kind, names in found if names],
        )

    async def CheckPermission(
        self, request: proto.CheckPermissionRequest, context: _Context
    ) -> proto.CheckPermissionResponse:
        caller = caller_of(context.invocation_metadata())
        agent = known(self._registry, caller)
        try:
            permissions.require(agent, request.kind, request.name)
        except errors.PermissionDenied as error:
            await record_denial(self._audit, caller, _ACTIONS[request.kind], request.name, error)
            raise
        return proto.CheckPermissionResponse()


class RefusalHandler(grpc.GenericRpcHandler):
    """Answers the calls that Envoy found no permitted agent for: says why, and has it recorded."""

    def __init__(self, registry: Registry, audit: AuditLog) -> None:
        self._registry = registry
        self._audit = audit

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return bytes_handler(handler_call_details.method, self._refuse)

    async def _refuse(self, method: str, _requests: AsyncIterator[bytes], context: _Context) -> AsyncIterator[bytes]:
        metadata = [(key, str(value)) for key, value in context.invocation_metadata() or ()]
        try:
            caller = caller_of(metadata)
            error = refusal(self._registry, known(self._registry, caller), method, metadata)
            if isinstance(error, errors.PermissionDenied):
                await record_denial(self._audit, caller, "call", _target(method, metadata), error)
            raise error
        except errors.AgentError as error:
            await interceptors.abort(context, error, method)
        yield b""  # makes it a generator; never reached


def known(registry: Registry, caller: Caller) -> Agent:
    """The agent of a caller.

    Raises:
        AgentNotReady: the gateway has not heard of it yet, or not any more.
    """
    agent = registry.get(caller.agent)
    if agent is None:
        raise errors.AgentNotReady(f"the gateway does not know agent '{caller.agent}' now; try again")
    return agent


async def record_denial(
    audit: AuditLog, caller: Caller, action: str, target: str, error: errors.PermissionDenied
) -> None:
    """Before it is answered."""
    await audit.record(
        principal=caller.principal,
        action=action,
        target=target,
        outcome="denied",
        detail=error.metadata.get("needed", error.message),
        worker_id=caller.worker_id,
    )


def refusal(registry: Registry, agent: Agent, method: str, metadata: Iterable[tuple[str, str]]) -> errors.AgentError:
    """Why a call that an agent makes goes to nobody.

    Args:
        registry: which agents there are.
        agent: that makes it.
        method: "/service/Method".
        metadata: of the call.
    """
    told = dict(metadata)
    if told.get(calls.CHAIN_KEY, "").count(",") > MOST_HOPS:
        return errors.FailedPrecondition(
            f"the call has come by more than {MOST_HOPS} agents, which looks like a circle; it goes no further",
            reason="CALL_CHAIN_TOO_LONG",
        )
    if name := told.get(AGENT_KEY, ""):
        return _named(registry, agent, name)
    service = method.strip("/").rpartition("/")[0]
    if service in descriptors.PLATFORM:
        return _denied(agent, f"agents have no access to {service}; `context` in the SDK has what they may ask")
    serving = [each.agent_id for each in registry.serving(service)]
    may = [name for name in serving if permissions.allowed(agent, proto.PERMISSION_KIND_AGENT, name)]
    if len(may) > 1:
        return errors.AgentAmbiguous(
            f"{len(may)} agents serve {service}: {', '.join(may)}; name one in {AGENT_KEY}",
            metadata={"service": service, "candidates": ",".join(may)},
        )
    if may and len(serving) == 1:
        return _named(registry, agent, may[0])
    if may:
        return errors.InvalidArgument(f"more than one agent serves {service}; name one in {AGENT_KEY}")
    return _denied(
        agent,
        f"agent '{agent.agent_id}' may call no agent that serves {service or method}; name it in {AGENT_KEY}, and "
        "below `permissions: agents:` of agent.yaml",
    )


def _named(registry: Registry, agent: Agent, name: str) -> errors.AgentError:
    target = registry.get(name)
    may = permissions.allowed(agent, proto.PERMISSION_KIND_AGENT, name)
    owner = _NUMBER.sub("", name)
    if not (may and target) and owner != name and permissions.allowed(agent, proto.PERMISSION_KIND_AGENT, owner):
        return _denied(agent, f"agents call agents, not one worker of them: name '{owner}'")
    if not may:
        return permissions.denial(agent, proto.PERMISSION_KIND_AGENT, name)
    if target is None:
        return errors.AgentNotFound(name)
    if target.demands.keys or target.demands.oauth2_client_id:
        return _denied(
            agent,
            f"agent '{name}' demands a credential of its callers, which no agent has; an operator has to lift that "
            f"(`agent update {name}`) before agents can call it",
        )
    return errors.AgentNotReady(f"agent '{name}' may be called since a moment ago; try again")


def _denied(agent: Agent, message: str) -> errors.PermissionDenied:
    return errors.PermissionDenied(message, reason="NOT_PERMITTED", metadata={"agent": agent.agent_id})


def _target(method: str, metadata: Iterable[tuple[str, str]]) -> str:
    return dict(metadata).get(AGENT_KEY) or method.strip("/")
