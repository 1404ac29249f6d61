"""What each method of the pool needs of its caller, and what of its answers a caller sees who may not see all."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agentruntime._proto.uapi.v1 import access_pb2 as access
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from agentruntime._proto.uapi.v1 import image_service_pb2 as images
from agentruntime._proto.uapi.v1 import secret_service_pb2 as secrets
from agentruntime.names import ImageReference
from google.protobuf.descriptor import MethodDescriptor

from uapi_gateway.access.keys import ALL

# Of a method that looks at no single agent: whoever has the role for some agent may, and sees those.
ANY: tuple[str, ...] = ()
Seen = Callable[[str], bool]


@dataclass(frozen=True)
class Need:
    """What one method needs."""

    role: int
    # The names in its first request: agents or workers; ALL asks for every agent.
    names: Callable[[Any], tuple[str, ...]]
    # Leaves out of an answer what the caller may not see; None: the message says nothing that it may.
    shown: Callable[[Any, Seen], Any | None] | None = None


def _field(name: str) -> Callable[[Any], tuple[str, ...]]:
    return lambda request: (getattr(request, name),)


def _every(_request: Any) -> tuple[str, ...]:
    return (ALL,)


def _any(_request: Any) -> tuple[str, ...]:
    return ANY


def _run(request: Any) -> tuple[str, ...]:
    return (request.agent or ImageReference.parse(request.image).agent,)


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


_OPERATE = access.ROLE_OPERATE
_POOL: Mapping[str, Need] = {
    "RunAgent": Need(_OPERATE, _run),
    **{name: Need(_OPERATE, _field("name")) for name in ("StopAgent", "RestartAgent", "UpdateAgent", "StreamLogs")},
    **{
        name: Need(_OPERATE, _field("agent"))
        for name in ("RollbackAgent", "ScaleAgent", "WakeAgent", "ListRevisions", "GetDeployment")
    },
    **{name: Need(_OPERATE, _field("worker_id")) for name in ("GetWorker", "DebugWorker")},
    "ListWorkers": Need(_OPERATE, _if_named, _workers),
    "ListDeployments": Need(_OPERATE, _any, _deployments),
    "WatchDeployments": Need(_OPERATE, _any, _event),
    "GetNode": Need(_OPERATE, _any),
    # The gateway's own, on the pool's socket.
    "ReportLoad": Need(access.ROLE_ADMINISTER, _every),
}


def _needs() -> Iterable[tuple[str, tuple[MethodDescriptor, Need]]]:
    for file, role, named in (
        (pool, access.ROLE_ADMINISTER, _POOL),
        (images, _OPERATE, {}),
        (secrets, access.ROLE_ADMINISTER, {}),
    ):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                # A method that nobody thought of here is for administrators.
                need = named.get(method.name, Need(role, _every))
                yield f"/{service.full_name}/{method.name}", (method, need)


# "/service/Method" of all that the pool serves.
NEEDS: Mapping[str, tuple[MethodDescriptor, Need]] = dict(_needs())
