"""Which worker gets which secret, and which has one that it would not get now: pure decisions.

An agent gets a secret if two say so: its author, who names it in agent.yaml (or the operator, who adds to that), and
the operator, who set it for that agent. Where only the author does, the worker is not started: it would fail later,
in a call, and less clearly.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from agentruntime import errors, sealed, secrets, units

ALL = "*"
# Secrets by name, their versions.
Versions = Mapping[str, str]


@dataclass(frozen=True)
class Secret:
    """One secret, as it is kept."""

    # "openai", or "my-agent/openai", which is of that agent alone and goes before the other.
    name: str
    # That may have it; "*" alone is all.
    agents: tuple[str, ...]
    # Tells this value from those before and after it.
    version: str
    # Since the epoch.
    changed_at_s: float
    # None if it cannot be decrypted.
    value: bytes | None = field(repr=False)

    @property
    def file_name(self) -> str:
        return secrets.split(self.name)[1]

    def is_for(self, agent: str) -> bool:
        return ALL in self.agents or agent in self.agents


def granted(kept: Mapping[str, Secret], agent: str, wanted: Sequence[str]) -> dict[str, Secret]:
    """What an agent's workers get, by the name of its file.

    Args:
        kept: all that were set, by name.
        agent: which.
        wanted: what it may use; "*" is whatever was set for it.

    Raises:
        SecretNotSet: one that is named was not set for this agent, or cannot be decrypted.
        FailedPrecondition: they are too large together.
    """
    names = dict.fromkeys(name for name in wanted if name != ALL)
    if ALL in wanted:
        names |= dict.fromkeys(sorted({each.file_name for each in kept.values() if each.is_for(agent)}))
    found = {name: _for_agent(kept, agent, name) for name in names}
    total = sum(len(each.value or b"") for each in found.values())
    if total > sealed.MOST_BYTES:
        raise errors.FailedPrecondition(
            f"the secrets of agent '{agent}' are {units.format_size(total)} together, and its workers take "
            f"{units.format_size(sealed.MOST_BYTES)} at most; give it fewer"
        )
    return found


def _for_agent(kept: Mapping[str, Secret], agent: str, name: str) -> Secret:
    own, shared = kept.get(f"{agent}/{name}"), kept.get(name)
    secret = own or shared
    if secret is None:
        raise errors.SecretNotSet(
            f"agent '{agent}' needs the secret '{name}', which is not set; set it with "
            f"`agent secrets set {name} --agents {agent}`"
        )
    if not secret.is_for(agent):
        others = ",".join([*secret.agents, agent])
        raise errors.SecretNotSet(
            f"agent '{agent}' needs the secret '{name}', which is set for other agents only; let it have it with "
            f"`agent secrets set {name} --keep-value --agents {others}`, or set one of its own with "
            f"`agent secrets set {agent}/{name}`"
        )
    if secret.value is None:
        raise errors.SecretNotSet(
            f"agent '{agent}' needs the secret '{name}', which was encrypted with another key; put the right key "
            f"file back and restart the platform, or set it again with `agent secrets set {secret.name}`"
        )
    return secret


def outdated(secret: str, agents: Iterable[tuple[str, Versions, Iterable[Versions]]]) -> list[str]:
    """Agents with workers that would be given something else of this secret now.

    Args:
        secret: its name.
        agents: each with the versions that a new worker would get, and those that its workers have.
    """
    return sorted(
        {agent for agent, now, had in agents if any(versions.get(secret) != now.get(secret) for versions in had)}
    )
