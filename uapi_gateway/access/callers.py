"""Whom a call on the control socket comes from. Only Envoy and this user's own processes reach that socket."""

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any

from agentruntime._proto.uapi.v1 import access_pb2 as proto
from agentruntime.errors import AgentError, PermissionDenied, Unauthenticated

from uapi_gateway.access import headers, scopes
from uapi_gateway.access.keys import ALL, LOCAL, Key
from uapi_gateway.access.policy import (
    AGENT_PREFIX,
    ANONYMOUS,
    CALL_ALL,
    CERTIFICATE_PREFIX,
    EVERYTHING,
    POOL,
    Caller,
    Grant,
    Policy,
    with_itself,
)

ROLE_NAMES: dict[int, str] = {role.value: role.name.lower() for role in scopes.Role}


def caller_of(metadata: Iterable[tuple[str, Any]] | None, policy: Policy) -> Caller:
    """The caller of a call, by its metadata: what a process that connects without Envoy does not say is this user."""
    told = {key: str(value) for key, value in metadata or () if key == headers.PRINCIPAL or key in headers.PRIVATE}
    principal = told.get(headers.PRINCIPAL, LOCAL)
    key = policy.keys.get(told.get(headers.KEY, ""))
    claims = _claims(told.get(headers.CLAIMS, ""))
    return Caller(
        principal=principal,
        grants=grants_of(principal, key, claims, policy),
        key=key,
        clients=scopes.clients(claims),
        secure=headers.SECURE in told,
    )


def principal_of(metadata: Iterable[tuple[str, Any]] | None) -> str:
    """The principal alone, for whoever needs no more."""
    return next((str(value) for key, value in metadata or () if key == headers.PRINCIPAL), LOCAL)


def grants_of(principal: str, key: Key | None, claims: Mapping[str, Any], policy: Policy) -> tuple[Grant, ...]:
    """What a principal may do."""
    if principal == LOCAL:
        return (EVERYTHING,)
    if principal == ANONYMOUS:
        return (CALL_ALL,) if policy.anonymous else ()
    if key is not None:
        return (Grant(key.role, key.agents),)
    if principal.startswith(CERTIFICATE_PREFIX):
        said = policy.by_certificate(principal.removeprefix(CERTIFICATE_PREFIX))
        return (Grant(said.role, said.agents),) if said.agents and principal != POOL else ()
    if principal.startswith(AGENT_PREFIX):
        agent = principal.removeprefix(AGENT_PREFIX)
        return (Grant(proto.ROLE_CALL, with_itself(agent, policy.permitted.get(agent, ()))),)
    for known in policy.identity:
        provider = known.provider
        if principal.startswith(provider.principal_prefix):
            return _granted(scopes.held(claims, provider.scope_claims, provider.grants))
    return ()


def _granted(held: Iterable[scopes.Grant]) -> tuple[Grant, ...]:
    """The same, a grant for each role."""
    by_role: dict[int, list[str]] = {}
    for grant in sorted(held):
        by_role.setdefault(grant.role, []).append(grant.agent)
    return tuple(Grant(role, (ALL,) if ALL in agents else tuple(agents)) for role, agents in by_role.items())


def _claims(encoded: str) -> dict[str, Any]:
    """Of a token that Envoy has found good."""
    if not encoded:
        return {}
    claims = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    return claims if isinstance(claims, dict) else {}


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
        f"{caller.principal} does not have {needed}; an administrator gives it, by a key (`agent keys create`), a "
        "scope of its token or `agent certs grant`",
        reason="NOT_PERMITTED",
        metadata={"principal": caller.principal},
    )
