"""Whether a call on the control socket may be made, by role and by the agents that it names; denials are audited."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from agentruntime._proto.uapi.v1 import access_pb2 as proto
from agentruntime.errors import AgentError, InvalidArgument
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import DecodeError
from grpc import aio

from uapi_gateway.access.callers import caller_of, refusal
from uapi_gateway.access.demand import ANY, Need
from uapi_gateway.access.keys import ALL
from uapi_gateway.access.policy import Caller, Policy, may_call
from uapi_gateway.kernel.audit import AuditLog, Outcome
from uapi_gateway.registry import Registry

# Fields by which requests name what they are about.
_NAMES = ("name", "key", "reference")
# For the request of a call that is refused in any case.
_REQUEST_S = 0.5


@dataclass(frozen=True)
class Checked:
    """A call that may be made."""

    caller: Caller
    method: MethodDescriptor
    need: Need
    # As its request has them: agents or workers.
    names: tuple[str, ...]
    # What it is about, for the audit log, where it names no agent.
    about: str = ""

    @property
    def changes(self) -> bool:
        """The method does something."""
        level = self.method.GetOptions().idempotency_level
        return bool(level != MethodOptions.NO_SIDE_EFFECTS) and not self.need.plain


class Checks:
    """Args:
    registry: knows whose worker a name is.
    policy: what is in force now.
    audit: where it is written down.
    """

    def __init__(self, registry: Registry, policy: Callable[[], Policy], audit: AuditLog) -> None:
        self._registry = registry
        self._policy = policy
        self._audit = audit

    def caller(self, context: aio.ServicerContext[Any, Any]) -> Caller:
        return caller_of(context.invocation_metadata(), self._policy())

    async def check(
        self, method: MethodDescriptor, need: Need, request: Any, context: aio.ServicerContext[Any, Any]
    ) -> Checked:
        """Lets a call pass; one that changes something is written down first, so that a caller who hangs up leaves no
        gap.

        Raises:
            PermissionDenied: its caller has not the role for those that it names.
            Unauthenticated: the same, of a caller without a credential.
        """
        checked = Checked(self.caller(context), method, need, need.names(request), _about(request))
        if not self._allowed(checked):
            await self._refuse(checked, checked.names)
        if checked.changes:
            await self.write(checked, "allowed")
        return checked

    async def admit(
        self,
        method: MethodDescriptor,
        need: Need,
        first: Awaitable[bytes | None],
        context: aio.ServicerContext[Any, Any],
    ) -> None:
        """The same before the request is there: who has the role for no agent is waited for no longer than a moment,
        so that what they wanted is written down.

        Args:
            method: that is called.
            need: of it.
            first: the first request, awaited of those alone who are refused; None if there is none.
            context: of the call.
        """
        checked = Checked(self.caller(context), method, need, ANY)
        if self._allowed(checked):
            return
        with contextlib.suppress(TimeoutError, InvalidArgument):
            async with asyncio.timeout(_REQUEST_S):
                request = parsed(method.input_type, await first or b"")
            checked = replace(checked, names=need.names(request), about=_about(request))
        # Which they wanted is for the log alone: all of it is refused.
        await self._refuse(checked, ANY)

    async def _refuse(self, checked: Checked, names: tuple[str, ...]) -> None:
        error = refusal(checked.caller, checked.need.role, names)
        await self.write(checked, "denied", error.message)
        raise error

    async def failed(self, checked: Checked, error: AgentError) -> None:
        """Writes down that a call which changes something has failed."""
        if checked.changes:
            await self.write(checked, "failed", error.message)

    async def write(self, checked: Checked, outcome: Outcome, detail: str = "") -> None:
        agents = {name: self._agent(checked.need, name) for name in checked.names}
        await self._audit.record(
            principal=checked.caller.principal,
            action=f"{checked.method.containing_service.name}/{checked.method.name}",
            target=checked.about if checked.names in (ANY, (ALL,)) else ", ".join(agents.values()),
            outcome=outcome,
            detail=detail,
            worker_id=next((name for name, agent in agents.items() if name != agent), ""),
        )

    def shown(self, checked: Checked, answer: Any) -> Any | None:
        """What the caller sees of an answer; None: nothing of it."""
        if checked.need.shown is None or checked.caller.may(proto.ROLE_OPERATE, ALL):
            return answer
        return checked.need.shown(answer, lambda agent: self.sees(checked.caller, checked.need.role, agent))

    def callable_by(self, context: aio.ServicerContext[Any, Any]) -> Callable[[str], bool]:
        """Says of an agent whether a call's caller may call it, and with that see that it is there."""
        caller = self.caller(context)
        return lambda agent: self.sees(caller, proto.ROLE_CALL, agent)

    def sees(self, caller: Caller, role: int, agent: str) -> bool:
        """Whether a caller has a role for an agent; to call it, the agent's demands must be met, too."""
        if role == proto.ROLE_CALL:
            return may_call(caller, agent, self._policy().demands.get(agent))
        return caller.may(role, agent)

    def _allowed(self, checked: Checked) -> bool:
        caller, role = checked.caller, checked.need.role
        if checked.names == ANY:
            return any(grant.role >= role and grant.agents for grant in caller.grants)
        return all(self.sees(caller, role, self._agent(checked.need, name)) for name in checked.names)

    def _agent(self, need: Need, name: str) -> str:
        """Whose a name is, to the service that is called."""
        if need.naming == "agent":
            return name
        if need.naming == "worker":
            return self._registry.owner(name) or name
        target = self._registry.find(name)
        return target.agent.agent_id if target else name


def _about(request: Any) -> str:
    """The name in a request of what is no agent: a key's, a secret's, an image's."""
    fields = request.DESCRIPTOR.fields_by_name
    named = (
        getattr(request, name) for name in _NAMES if name in fields and fields[name].type == fields[name].TYPE_STRING
    )
    return next((name for name in named if name), ALL)


def parsed(kind: Any, message: bytes) -> Any:
    """A message by its type.

    Raises:
        InvalidArgument: the bytes are none.
    """
    try:
        return message_factory.GetMessageClass(kind).FromString(message)
    except DecodeError:
        raise InvalidArgument(f"the message is not a {kind.full_name}") from None
