"""Slots: small numbers that tell the processes of an agent apart, by their uid and their socket's directory."""

import os

from agentruntime import errors, launch


class Slots:
    """Which are taken, by agent. From 1, the lowest first."""

    def __init__(self) -> None:
        self._taken: dict[str, set[int]] = {}

    def take(self, agent: str) -> int:
        """A slot that nobody of that agent has.

        Raises:
            InsufficientResources: an agent has no more uids than that.
        """
        taken = self._taken.setdefault(agent, set())
        slot = next(number for number in range(1, len(taken) + 2) if number not in taken)
        if slot >= launch.UIDS_PER_AGENT:
            raise errors.InsufficientResources(
                f"agent '{agent}' has {len(taken)} workers, and no uid is left for one more"
            )
        taken.add(slot)
        return slot

    def claim(self, agent: str, slot: int) -> None:
        """Marks the slot of a process that was there before this pool."""
        self._taken.setdefault(agent, set()).add(slot)

    def free(self, agent: str, slot: int) -> None:
        """Gives a slot back, once nothing runs in it any more. Idempotent."""
        taken = self._taken.get(agent, set())
        taken.discard(slot)
        if not taken:
            self._taken.pop(agent, None)


def uid_base(agent_index: int) -> int:
    """First of the uids of an agent; 0 where this pool may not give processes any but its own."""
    return launch.UID_BASE + agent_index * launch.UIDS_PER_AGENT if os.geteuid() == 0 else 0


def uid(agent_index: int, slot: int) -> int:
    """As which the process in a slot runs."""
    base = uid_base(agent_index)
    return base + slot if base else os.geteuid()


def user(uid: int) -> str:
    """The user and group of a process of that uid, as container engines have them."""
    return f"{uid}:{uid if os.geteuid() == 0 else os.getegid()}"
