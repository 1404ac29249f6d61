"""What an agent asks of the platform: `from agentruntime import context`.

    answer = await context.agent("translator").text_generation.GenerateText(GenerateTextRequest(prompt="hi"))

It may use what `permissions:` in its agent.yaml says, and nothing else. Calls made here belong to the call that is
being handled: they have its trace, and end at its deadline. Errors are the classes of `agentruntime.errors`.
"""

import asyncio
import threading
from dataclasses import dataclass, field
from typing import TypeVar
from weakref import WeakKeyDictionary

from google.protobuf.message import Message

from agentruntime import calls, errors
from agentruntime._proto.uapi.v1 import model_service_pb2_grpc, system_calls_pb2_grpc
from agentruntime._proto.uapi.v1 import system_calls_pb2 as proto
from agentruntime.client import AsyncClient, Client
from agentruntime.model import Model

_making = threading.Lock()
MessageT = TypeVar("MessageT", bound=Message)
KINDS = {
    "agents": proto.PERMISSION_KIND_AGENT,
    "models": proto.PERMISSION_KIND_MODEL,
    "topics": proto.PERMISSION_KIND_TOPIC,
    "tools": proto.PERMISSION_KIND_TOOL,
    "egress": proto.PERMISSION_KIND_EGRESS,
    "secrets": proto.PERMISSION_KIND_SECRET,
}
# By event loop: a client belongs to one.
_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncClient] = WeakKeyDictionary()
_blocking: list[Client] = []


@dataclass(frozen=True)
class Self:
    """Who the calling worker is, and what it may use."""

    agent: str
    # "" where the platform cannot tell the workers of an agent apart.
    worker_id: str
    # Of the agent; 0 as above.
    revision: int
    # By their keys in agent.yaml: {"agents": ("translator",)}.
    permissions: dict[str, tuple[str, ...]] = field(default_factory=dict)


def agent(name: str) -> AsyncClient:
    """A client whose calls go to another agent, or to this one itself; for `async` code.

    Raises:
        FailedPrecondition: this process is no worker, or this is no `async` code.
        InvalidArgument: the name is none.
    """
    return _client().agent(name)


def blocking(name: str) -> Client:
    """The same for plain functions, which run in threads.

    Raises:
        FailedPrecondition: this process is no worker.
        InvalidArgument: the name is none.
    """
    where = _address()
    with _making:
        if not _blocking:
            _blocking.append(Client(where, token=""))
    return _blocking[0].agent(name)


async def call(
    agent: str, method: str, request: Message, response: type[MessageT], *, timeout_s: float | None = None
) -> MessageT:
    """Calls a unary method of another agent without a generated stub.

    Args:
        agent: to be called.
        method: "package.Service/Method".
        request: its message.
        response: the class of the answer.
        timeout_s: by default 30, and never beyond the deadline of the call that is being handled.

    Raises:
        PermissionDenied: agent.yaml does not permit it; says what it would have to say.
        AgentError: what the other agent raised, or the platform.
    """

    def make(channel: object) -> object:
        return channel.unary_unary(  # type: ignore[attr-defined]  # grpc.aio's channel, as generated stubs use it
            f"/{method.strip('/')}", request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )  # fmt: skip

    answer: MessageT = await _client().stub(make, agent=agent)(request, timeout=timeout_s)  # type: ignore[operator]  # as above
    return answer


async def self() -> Self:
    """Who this worker is, and what it may use."""
    answer = await _system().GetSelf(proto.GetSelfRequest())
    names = {kind: name for name, kind in KINDS.items()}
    held = {names[each.kind]: tuple(each.names) for each in answer.permissions if each.kind in names}
    return Self(answer.agent, answer.worker_id, answer.revision, held)


async def check(kind: str, name: str) -> None:
    """Returns if this agent may use something; a denial is recorded, like that of the use.

    Args:
        kind: a key of `permissions:` in agent.yaml: "agents", "egress".
        name: "translator", "api.example.com:443".

    Raises:
        PermissionDenied: it may not; says what agent.yaml would have to say.
        InvalidArgument: there is no such kind.
    """
    if kind not in KINDS:
        raise errors.InvalidArgument(f"'{kind}' is no kind of permission; the kinds are {', '.join(KINDS)}")
    await _system().CheckPermission(proto.CheckPermissionRequest(kind=KINDS[kind], name=name))


def _system() -> "system_calls_pb2_grpc.SystemCallServiceAsyncStub":
    return _client().stub(system_calls_pb2_grpc.SystemCallServiceStub, agent="")


def _models() -> "model_service_pb2_grpc.ModelServiceAsyncStub":
    return _client().stub(model_service_pb2_grpc.ModelServiceStub, agent="")


# What has text generated, for `async` code: `await context.model.generate("Why is the sky blue?")`.
model = Model(_models)


def _client() -> AsyncClient:
    where = _address()
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise errors.FailedPrecondition(
            "this is for code that is `async`; in a plain function take context.blocking(name)"
        ) from None
    if loop not in _clients:
        _clients[loop] = AsyncClient(where, token="")
    return _clients[loop]


def _address() -> str:
    if not calls.address:
        raise errors.FailedPrecondition(
            "system calls can be made by a worker of the platform, from its start() on; `agent run` makes workers"
        )
    return calls.address
