"""Which agent may call which, as Envoy's routes for system calls look it up: as patterns of "caller>called" (RE2).

One pattern for all of them, and not a branch of the tree for each: routes stay small and quick to change with a
thousand agents, and RE2 takes no longer for a pattern that is longer.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from uapi_gateway.kernel.permissions import ALL

# Of no agent: names hold no such sign.
_NONE = ">"


@dataclass(frozen=True)
class Edges:
    """Pure data: equal edges give equal routes."""

    # Caller -> the agents that it may call, itself among them.
    named: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Callers that may call every agent.
    everywhere: frozenset[str] = frozenset()
    # Agents that demand a credential of their callers, which no agent has.
    demanding: frozenset[str] = frozenset()

    def allowed(self) -> str:
        """Of "caller>called" where both are named."""
        return _any(
            f"{re.escape(caller)}>{_any(map(re.escape, called))}" for caller, called in sorted(self.named.items())
        )

    def from_everywhere(self) -> str:
        """Of "caller>called" where the caller may call every agent."""
        return f"{_any(map(re.escape, sorted(self.everywhere)))}>.+"

    def callers(self, called: str) -> str:
        """Of the callers that may call an agent."""
        found = {caller for caller, agents in self.named.items() if called in agents}
        if called not in self.demanding:
            found |= self.everywhere
        return _any(map(re.escape, sorted(found)))


def edges(agents: Iterable[Any]) -> Edges:
    """Of the `registry.Agent`s that there are. Those that registered themselves are no workers of ours."""
    every = list(agents)
    demanding = frozenset(each.agent_id for each in every if each.demands.keys or each.demands.oauth2_client_id)
    callers = [each for each in every if each.lease is None]
    return Edges(
        named={
            each.agent_id: tuple(sorted(set(each.permissions.agents) - demanding - {ALL} | {each.agent_id}))
            for each in callers
        },
        everywhere=frozenset(each.agent_id for each in callers if ALL in each.permissions.agents),
        demanding=demanding,
    )


def _any(patterns: Iterable[str]) -> str:
    return f"(?:{'|'.join(patterns) or _NONE})"
