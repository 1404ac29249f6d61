"""Who may call which agent. Pure data and decisions; Envoy's filters are built from the same data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from agentruntime import certificates
from agentruntime._proto.uapi.v1 import access_pb2 as proto

from uapi_gateway.access.certified import UNSAID, Certified
from uapi_gateway.access.identity import Known
from uapi_gateway.access.keys import ALL, LOCAL, Key
from uapi_gateway.registry import Demands

ANONYMOUS = "anonymous"
AGENT_PREFIX = "agent:"
# Of programs that are known by a certificate, before its URI name.
CERTIFICATE_PREFIX = "cert:"
# It is there to be called, and may lie on another machine.
POOL = CERTIFICATE_PREFIX + certificates.POOL


@dataclass(frozen=True)
class Policy:
    """All that it depends on who may call what."""

    # By id; those that have not expired.
    keys: Mapping[str, Key] = field(default_factory=dict)
    # What agents demand of their callers, where they demand something.
    demands: Mapping[str, Demands] = field(default_factory=dict)
    # The agents that agents may call, as their permissions say; without those that may call none.
    permitted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Of the agents that there are, those whose scopes Envoy looks for by name.
    named: tuple[str, ...] = ()
    # What is said of certificates, by URI.
    certified: Mapping[str, Certified] = field(default_factory=dict)
    # Callers without a credential may call agents that demand none.
    anonymous: bool = True
    # Identity providers and their keys.
    identity: tuple[Known, ...] = ()

    def by_certificate(self, uri: str) -> Certified:
        """What whoever shows a certificate of that name may do."""
        return self.certified.get(uri) or self.certified.get(ALL) or UNSAID


@dataclass(frozen=True)
class Grant:
    """A role for some agents."""

    role: int
    agents: tuple[str, ...]

    def covers(self, role: int, agent: str) -> bool:
        """Whether it is enough for a role on an agent; "*" asks for all agents."""
        return self.role >= role and (self.agents == (ALL,) or agent in self.agents)


EVERYTHING = Grant(proto.ROLE_ADMINISTER, (ALL,))
CALL_ALL = Grant(proto.ROLE_CALL, (ALL,))


@dataclass(frozen=True)
class Caller:
    """Whom a call comes from, as Envoy has found out."""

    principal: str
    grants: tuple[Grant, ...] = ()
    key: Key | None = None
    # The OAuth2 clients that its token was issued to or for.
    clients: frozenset[str] = frozenset()
    # Its connection is encrypted, or does not leave this machine's kernel.
    secure: bool = False

    def may(self, role: int, agent: str) -> bool:
        """Whether it has a role for an agent; "*" asks for all agents."""
        return any(grant.covers(role, agent) for grant in self.grants)


def with_itself(agent: str, permitted: tuple[str, ...]) -> tuple[str, ...]:
    """All that an agent may call: what its permissions name, and itself."""
    return permitted if permitted == (ALL,) or agent in permitted else (*permitted, agent)


def may_call(caller: Caller, agent: str, demands: Demands | None) -> bool:
    """Whether a caller may call an agent: it has the role, and is what the agent demands."""
    if not caller.may(proto.ROLE_CALL, agent):
        return False
    return demands is None or caller.principal == "local" or meets(caller, demands)


def meets(caller: Caller, demands: Demands) -> bool:
    """Whether a caller is what an agent demands: one of the keys or of the client, and encrypted if it says so."""
    if demands.tls and not caller.secure:
        return False
    by_client = bool(demands.oauth2_client_id) and demands.oauth2_client_id in caller.clients
    return by_client or accepts(demands, caller.key)


def accepts(demands: Demands, key: Key | None) -> bool:
    """Whether the demands are met by that key, or by none, or leave it open who calls."""
    if not demands.keys:
        return not demands.oauth2_client_id
    return key is not None and bool({ALL, key.name, key.key_id} & set(demands.keys))


def unmet(demands: Demands, agent: str, policy: Policy) -> str:
    """What an agent demands and no caller has, for its operator may have mistyped it: a sentence, or ""."""
    keys = [key for key in policy.keys.values() if key.name != LOCAL and _is_for(key, agent)]
    absent = [each for each in demands.keys if not any(accepts(Demands(keys=(each,)), key) for key in keys)]
    lacking = ["no API key is for it" if each == ALL else f"no API key '{each}' is for it" for each in absent]
    if demands.oauth2_client_id and not policy.identity:
        lacking.append(f"no identity provider is configured that could know the client '{demands.oauth2_client_id}'")
    if not lacking:
        return ""
    said = " and ".join(lacking)
    if len(lacking) < len(demands.keys) + bool(demands.oauth2_client_id):
        return f"{agent} demands what nobody has: {said}"
    return f"{agent} demands what nobody has: {said}; until that is there, only the platform's own user can call it"


def _is_for(key: Key, agent: str) -> bool:
    return Grant(key.role, key.agents).covers(proto.ROLE_CALL, agent)
