"""What each method of the platform needs of its caller, and what of its answers a caller sees who may not see all."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from agentruntime._proto.uapi.v1 import access_pb2 as access
from agentruntime._proto.uapi.v1 import agent_gateway_pb2 as gateway
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry
from agentruntime._proto.uapi.v1 import audit_pb2 as audit
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as conversations
from agentruntime._proto.uapi.v1 import image_service_pb2 as images
from agentruntime._proto.uapi.v1 import secret_service_pb2 as secrets
from agentruntime.names import ImageReference
from agentruntime.sections import NONE
from google.protobuf.descriptor import MethodDescriptor

from uapi_gateway.access.keys import ALL

# Of a method that looks at no single agent: whoever has the role for some agent may, and sees those.
ANY: tuple[str, ...] = ()
Seen = Callable[[str], bool]
# What names in a request are: agents', workers', or either, and then first an agent's; as the service reads them.
Naming = Literal["agent", "worker", "either"]


@dataclass(frozen=True)
class Need:
    """What one method needs."""

    role: int
    # The names in its first request: agents or workers; ALL asks for every agent.
    names: Callable[[Any], tuple[str, ...]]
    # Leaves out of an answer what the caller may not see; None: the message says nothing that it may.
    shown: Callable[[Any, Seen], Any | None] | None = None
    # Not written down when it is allowed: it is like any call to an agent, or a renewal of what was written down.
    plain: bool = False
    naming: Naming = "either"


def _field(name: str) -> Callable[[Any], tuple[str, ...]]:
    return lambda request: (getattr(request, name),)


def _every(_request: Any) -> tuple[str, ...]:
    return (ALL,)


def _any(_request: Any) -> tuple[str, ...]:
    return ANY


def _run(request: Any) -> tuple[str, ...]:
    return (request.agent or ImageReference.parse(request.image).agent, *_widening(request))


def _update(request: Any) -> tuple[str, ...]:
    return (request.name, *_widening(request))


def _scale(request: Any) -> tuple[str, ...]:
    return (request.agent, *_beyond(request.allow_unenforced))


def _widening(request: Any) -> tuple[str, ...]:
    """What opens ways that an agent's image alone cannot: to others, to this machine, or past its walls."""
    settings = request.settings
    return _beyond(
        settings.permissions.ByteSize()
        or settings.network not in (pool.NETWORK_MODE_UNSPECIFIED, pool.NETWORK_MODE_ISOLATED)
        # A program of this machine, which the pool runs as itself.
        or settings.venv
        # The pool connects to it, from outside of all walls.
        or settings.logging.aggregator not in ("", NONE)
        or request.allow_unenforced
    )


def _beyond(opens: Any) -> tuple[str, ...]:
    """Of what is more than an agent's own."""
    return (ALL,) if opens else ()


def _if_named(request: Any) -> tuple[str, ...]:
    return (request.agent,) if request.agent else ANY


def _workers(answer: Any, seen: Seen) -> Any:
    kept = [worker for worker in answer.workers if seen(worker.agent)]
    del answer.workers[:]
    answer.workers.extend(kept)
    return answer


def _deployments(answer: Any, seen: Seen) -> Any:
    kept = [deployment for deployment in answer.deployments if seen(deployment.agent)]
    del answer.deployments[:]
    answer.deployments.extend(kept)
    return answer


def _event(answer: Any, seen: Seen) -> Any | None:
    about = answer.changed.agent if answer.HasField("changed") else answer.removed
    return answer if not about or seen(about) else None


def _agents(answer: Any, seen: Seen) -> Any:
    kept = [agent for agent in answer.agents if seen(agent.agent_id)]
    del answer.agents[:]
    answer.agents.extend(kept)
    return answer


def _agent_event(answer: Any, seen: Seen) -> Any | None:
    about = answer.changed.agent_id if answer.HasField("changed") else answer.removed
    return answer if not about or seen(about) else None


_CALL, _OPERATE, _ADMINISTER = access.ROLE_CALL, access.ROLE_OPERATE, access.ROLE_ADMINISTER
_OPEN = ("/uapi.v1.AccessService/GetCaller", "/uapi.v1.AccessService/ListIdentityProviders")


def calling(agent: str) -> Need:
    """Of a method that is like any call to that agent."""
    return Need(_CALL, lambda _request: (agent,), plain=True)


_POOL: Mapping[str, Need] = {
    "RunAgent": Need(_OPERATE, _run, naming="agent"),
    **{name: Need(_OPERATE, _field("name")) for name in ("StopAgent", "RestartAgent", "StreamLogs")},
    "UpdateAgent": Need(_OPERATE, _update),
    "ScaleAgent": Need(_OPERATE, _scale, naming="agent"),
    **{
        name: Need(_OPERATE, _field("agent"), naming="agent")
        for name in ("RollbackAgent", "WakeAgent", "ListRevisions", "GetDeployment")
    },
    **{name: Need(_OPERATE, _field("worker_id"), naming="worker") for name in ("GetWorker", "DebugWorker")},
    "ListWorkers": Need(_OPERATE, _if_named, _workers, naming="agent"),
    "ListDeployments": Need(_OPERATE, _any, _deployments),
    "WatchDeployments": Need(_OPERATE, _any, _event),
    "GetNode": Need(_OPERATE, _any),
    # The gateway's own, on the pool's socket.
    **{name: Need(_ADMINISTER, _every) for name in ("AcknowledgeDeployments", "ReportLoad")},
}


_REGISTRY: Mapping[str, Need] = {
    "RegisterAgent": Need(_OPERATE, lambda request: (request.registration.agent_id,), naming="agent"),
    "DeregisterAgent": Need(_OPERATE, _field("agent_id"), naming="agent"),
    # Whoever knows the lease may renew it: its id is random, and told to whoever registered.
    # Every few seconds, so not written down.
    "KeepAlive": Need(_OPERATE, _any, plain=True),
    "GetAgent": Need(_CALL, _field("agent_id")),
    "ListAgents": Need(_CALL, _any, _agents),
    "WatchAgents": Need(_CALL, _any, _agent_event),
}


_GATEWAY: Mapping[str, Need] = {
    "CallAgent": Need(_CALL, _field("agent_id"), plain=True),
    "GetStatus": Need(_CALL, _any),
}


# Whose conversation it is decides, too: the service itself looks, and writes down what is done with others'.
_CONVERSATIONS: Mapping[str, Need] = {
    method.name: Need(_CALL, _any, plain=True)
    for method in conversations.DESCRIPTOR.services_by_name["ConversationService"].methods
}


def _needs(
    file: Any, role: int, named: Mapping[str, Need] | None = None
) -> Iterable[tuple[str, tuple[MethodDescriptor, Need]]]:
    """Of all methods in a file; one that nobody thought of here needs the role for all agents."""
    for service in file.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            yield f"/{service.full_name}/{method.name}", (method, (named or {}).get(method.name, Need(role, _every)))


# "/service/Method" of all that the pool serves.
POOL_NEEDS: Mapping[str, tuple[MethodDescriptor, Need]] = {
    **dict(_needs(pool, _ADMINISTER, _POOL)),
    **dict(_needs(images, _OPERATE)),
    **dict(_needs(secrets, _ADMINISTER)),
}
# Of what the gateway serves by itself. A few methods are for everyone; reflection and health look by themselves.
OWN_NEEDS: Mapping[str, tuple[MethodDescriptor, Need]] = {
    path: found
    for path, found in (
        *_needs(registry, _ADMINISTER, _REGISTRY),
        *_needs(gateway, _ADMINISTER, _GATEWAY),
        *_needs(conversations, _ADMINISTER, _CONVERSATIONS),
        *_needs(audit, _ADMINISTER),
        *_needs(access, _ADMINISTER),
    )
    if path not in _OPEN
}
