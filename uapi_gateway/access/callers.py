"""Whom a call on the control socket comes from. Only Envoy and this user's own processes reach that socket."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from agentruntime._proto.uapi.v1 import access_pb2 as proto
from agentruntime.errors import AgentError, PermissionDenied, Unauthenticated

from uapi_gateway.access import headers
from uapi_gateway.access.keys import ALL, LOCAL, Key
from uapi_gateway.access.policy import (
    AGENT_PREFIX,
    ANONYMOUS,
    CALL_ALL,
    CERTIFICATE_PREFIX,
    EVERYTHING,
    Caller,
    Grant,
    Policy,
)

_SCOPE = re.compile(r"uapi\.(?P<role>call|operate|administer)(?::(?P<agent>[a-z0-9-]+))?")
_ROLES = {"call": proto.ROLE_CALL, "operate": proto.ROLE_OPERATE, "administer": proto.ROLE_ADMINISTER}
ROLE_NAMES: dict[int, str] = {role: name for name, role in _ROLES.items()}


def caller_of(metadata: Iterable[tuple[str, Any]] | None, policy: Policy) -> Caller:
    """The caller of a call, by its metadata: what a process that connects without Envoy does not say is this user."""
    told = {key: str(value) for key, value in metadata or () if key == headers.PRINCIPAL or key in headers.PRIVATE}
    principal = told.get(headers.PRINCIPAL, LOCAL)
    key = policy.keys.get(told.get(headers.KEY, ""))
    return Caller(
        principal=principal,
        grants=grants_of(principal, key, told, policy),
        key=key,
        client=told.get(headers.CLIENT, ""),
        secure=headers.SECURE in told,
    )


def grants_of(principal: str, key: Key | None, told: Mapping[str, str], policy: Policy) -> tuple[Grant, ...]:
    """What a principal may do."""
    if principal == LOCAL:
        return (EVERYTHING,)
    if principal == ANONYMOUS:
        return (CALL_ALL,) if policy.anonymous else ()
    if key is not None:
        return (Grant(key.role, key.agents),)
    if principal.startswith(CERTIFICATE_PREFIX):
        return (CALL_ALL,)
    if principal.startswith(AGENT_PREFIX):
        agents = policy.permitted.get(principal.removeprefix(AGENT_PREFIX), ())
        return (Grant(proto.ROLE_CALL, agents),) if agents else ()
    return scoped(told.get(headers.SCOPES, ""))


def scoped(scopes: str) -> tuple[Grant, ...]:
    """The grants in the scopes of a token: `uapi.call`, `uapi.operate:my-agent`; others are not ours."""
    named: dict[int, list[str]] = {}
    for scope in scopes.replace(",", " ").split():
        if found := _SCOPE.fullmatch(scope):
            named.setdefault(_ROLES[found["role"]], []).append(found["agent"] or ALL)
    # To administer is for all agents, never for one.
    return tuple(
        Grant(role, (ALL,) if ALL in agents else tuple(agents))
        for role, agents in sorted(named.items())
        if role != proto.ROLE_ADMINISTER or ALL in agents
    )


def refusal(caller: Caller, role: int, agents: Iterable[str]) -> AgentError:
    """Why a caller may not; says what would be needed."""
    named = tuple(agents)
    whom = "all agents" if ALL in named else f"agent {', '.join(map(repr, named))}" if named else "an agent"
    needed = f"the role {ROLE_NAMES[role]} for {whom}"
    if caller.principal == ANONYMOUS:
        return Unauthenticated(
            f"this needs {needed}: send an API key as 'authorization: Bearer uapi_…' (`agent keys create` makes it), "
            "or use the gateway's socket on its own machine",
            reason="CREDENTIAL_MISSING",
        )
    return PermissionDenied(
        f"{caller.principal} does not have {needed}; an administrator gives it by `agent keys create`",
        reason="NOT_PERMITTED",
        metadata={"principal": caller.principal},
    )
