"""What the scopes and roles in a token of an identity provider mean here. Pure.

uapi.call                call every agent             uapi.call:my-agent       call that one
uapi.operate             operate every agent          uapi.operate:my-agent    operate that one
uapi.administer          all of it, for every agent
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

_SCOPE = re.compile(r"uapi\.(?P<role>call|operate|administer)(?::(?P<agent>[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?))?")
EVERY_AGENT = "*"
# Claims with the client that a token was issued to: OpenID Connect's, RFC 9068's, Okta's and Entra's; and for.
ISSUED_TO = ("azp", "client_id", "cid", "appid")
ISSUED_FOR = "aud"


class Role(IntEnum):
    """Each may do what those before it may. The numbers are those of the proto's Role."""

    CALL = 1
    OPERATE = 2
    ADMINISTER = 3


@dataclass(frozen=True, order=True)
class Grant:
    """A role for one agent, or for "*"."""

    role: Role
    agent: str

    @property
    def scope(self) -> str:
        """It, as a scope."""
        name = f"uapi.{self.role.name.lower()}"
        return name if self.agent == EVERY_AGENT else f"{name}:{self.agent}"


def parse(scope: str) -> Grant | None:
    """The grant that one of our scopes stands for; None for any other."""
    match = _SCOPE.fullmatch(scope)
    if match is None:
        return None
    role = Role[match["role"].upper()]
    if role is Role.ADMINISTER and match["agent"]:
        return None
    return Grant(role, match["agent"] or EVERY_AGENT)


def grants(values: Iterable[str], mapped: Mapping[str, Iterable[str]]) -> frozenset[Grant]:
    """What a token with these scopes and roles may do.

    Args:
        values: as the token has them.
        mapped: of the provider's own names to our scopes; if it is empty, the token's are ours.
    """
    ours = [scope for value in values for scope in mapped.get(value, ())] if mapped else values
    return frozenset(grant for scope in ours if (grant := parse(scope)))


def held(
    claims: Mapping[str, Any], scope_claims: Iterable[str], mapped: Mapping[str, Iterable[str]]
) -> frozenset[Grant]:
    """What a token with these claims may do, as Envoy reads them."""
    return grants([value for claim in scope_claims for value in _texts(claims.get(claim), divided=True)], mapped)


def clients(claims: Mapping[str, Any]) -> frozenset[str]:
    """The clients that a token with these claims was issued to or for."""
    to = [claims[claim] for claim in ISSUED_TO if isinstance(claims.get(claim), str)]
    return frozenset([*to, *_texts(claims.get(ISSUED_FOR), divided=False)])


def _texts(value: Any, *, divided: bool) -> list[str]:
    if isinstance(value, str):
        return value.split(" ") if divided else [value]
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def sufficient(role: Role, agent: str, mapped: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """The scopes and roles of which a token needs one to have a role for an agent ("*": for all), as it has them."""
    agents = dict.fromkeys((EVERY_AGENT, agent))
    wanted = [
        Grant(higher, each)
        for higher in Role
        for each in agents
        if higher >= role and (each == EVERY_AGENT or higher is not Role.ADMINISTER)
    ]
    if not mapped:
        return tuple(grant.scope for grant in wanted)
    return tuple(value for value, scopes in mapped.items() if any(parse(scope) in wanted for scope in scopes))
