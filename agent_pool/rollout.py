"""The plan of a roll: what is to be done next to replace workers by new ones. A pure decision.

A new worker is ready before an old one drains, one after the other; where the machine has no room for one more, an
old one makes room first, as long as another still serves.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Old:
    """A worker that is yet to be replaced."""

    key: str
    # Whether it takes calls now.
    serves: bool


@dataclass(frozen=True)
class Situation:
    """Of a roll, and of the machine."""

    # New workers that there are to be in the end.
    wanted: int
    # The oldest first.
    old: tuple[Old, ...]
    # New ones that have not answered yet, and those that are ready.
    starting: int
    ready: int
    # Old ones on their way out; their room comes free.
    draining: int
    # Whether a worker that is no part of the roll takes calls.
    others_serve: bool
    # Whether the machine has room for one more new worker.
    room: bool


@dataclass(frozen=True)
class Start:
    """One new worker."""


@dataclass(frozen=True)
class Drain:
    """That old worker."""

    key: str


@dataclass(frozen=True)
class Wait:
    """Until something changes."""


@dataclass(frozen=True)
class Done:
    """All is as wanted."""


@dataclass(frozen=True)
class Stuck:
    """There is no room for a new worker, and nothing may make room."""


Step = Start | Drain | Wait | Done | Stuck


def next_step(now: Situation) -> Step:
    """What is to be done next. Ask again when it is done; draining is not waited for."""
    if now.starting:
        return Wait()
    # What takes no calls is missed by nobody.
    goes_first = min(now.old, key=lambda each: each.serves, default=None)
    if goes_first is not None and now.ready + len(now.old) > now.wanted:
        return Drain(goes_first.key)
    if now.ready >= now.wanted:
        return Wait() if now.draining else Done()
    if now.room:
        return Start()
    if now.draining:
        return Wait()
    if goes_first is None:
        return Stuck()
    others = now.ready + sum(each.serves for each in now.old) - goes_first.serves
    if goes_first.serves and not others and not now.others_serve:
        return Stuck()
    return Drain(goes_first.key)
