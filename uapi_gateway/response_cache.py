"""Keeps answers to give them again: bytes, age and use of each, per agent. Plain memory; time is an argument.

Which calls may be answered so, and under which key, is decided in `caching`.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from uapi_gateway.registry import CachePolicy

# What an entry costs beside its bytes: its key, dictionary slots and objects (measured with tracemalloc).
OVERHEAD_BYTES = 640


@dataclass(frozen=True)
class Answer:
    """One OK answer of a unary call: its message, and the metadata that came before and after it."""

    message: bytes
    initial: Sequence[tuple[str, str | bytes]] = ()
    trailing: Sequence[tuple[str, str | bytes]] = ()

    @property
    def size_bytes(self) -> int:
        """What keeping it costs."""
        metadata = (*self.initial, *self.trailing)
        return OVERHEAD_BYTES + len(self.message) + sum(len(key) + len(value) + 120 for key, value in metadata)


@dataclass
class Figures:
    """What an agent's cache has done since the gateway started."""

    hits: int = 0
    misses: int = 0
    # Answers given up before their time, for lack of room.
    evictions: int = 0
    # Kept now.
    size_bytes: int = 0


@dataclass
class _Shelf:
    """The answers of one agent."""

    figures: Figures = field(default_factory=Figures)
    # What the answers are of; others are dropped with the first of another revision.
    revision: str = ""
    # The least recently used first.
    answers: "OrderedDict[bytes, Answer]" = field(default_factory=OrderedDict)
    # When each was kept; the oldest first.
    put_at: "OrderedDict[bytes, float]" = field(default_factory=OrderedDict)
    # How old they may become.
    ttl_s: float = 0.0

    def remove(self, key: bytes) -> None:
        self.figures.size_bytes -= self.answers.pop(key).size_bytes
        del self.put_at[key]

    def too_old(self, key: bytes, now: float) -> bool:
        return self.put_at[key] + self.ttl_s <= now

    def clear(self) -> None:
        self.answers.clear()
        self.put_at.clear()
        self.figures.size_bytes = 0

    def shrink(self, max_bytes: int) -> None:
        while self.figures.size_bytes > max_bytes:
            self.remove(next(iter(self.answers)))
            self.figures.evictions += 1


class ResponseCache:
    """Answers by agent and key. Times in seconds, of any one clock that never goes back."""

    def __init__(self) -> None:
        self._shelves: dict[str, _Shelf] = {}

    def get(self, agent: str, revision: str, key: bytes, now: float) -> Answer | None:
        """The answer kept under a key for that revision of an agent, unless it is too old."""
        shelf = self._shelves.setdefault(agent, _Shelf())
        answer = shelf.answers.get(key) if shelf.revision == revision else None
        if answer is not None and shelf.too_old(key, now):
            shelf.remove(key)
            answer = None
        if answer is None:
            shelf.figures.misses += 1
            return None
        shelf.answers.move_to_end(key)
        shelf.figures.hits += 1
        return answer

    def put(self, agent: str, revision: str, key: bytes, answer: Answer, *, policy: CachePolicy, now: float) -> None:
        """Keeps an answer; those used least recently make room. One larger than all the room is not kept.

        Answers of other revisions of the agent are dropped.
        """
        shelf = self._shelves.setdefault(agent, _Shelf())
        if shelf.revision != revision:
            shelf.clear()
            shelf.revision = revision
        if key in shelf.answers:
            shelf.remove(key)
        if answer.size_bytes > policy.max_bytes:
            return
        shelf.answers[key] = answer
        shelf.put_at[key], shelf.ttl_s = now, policy.ttl_s
        shelf.figures.size_bytes += answer.size_bytes
        shelf.shrink(policy.max_bytes)

    def keep(self, agent: str, revision: str, policy: CachePolicy | None) -> None:
        """Drops what an agent's present revision and policy (None: no cache) do not allow to be given again."""
        shelf = self._shelves.get(agent)
        if shelf is None:
            return
        if policy is None or shelf.revision != revision:
            shelf.clear()
        else:
            shelf.ttl_s = policy.ttl_s
            shelf.shrink(policy.max_bytes)

    def forget(self, agent: str) -> None:
        """Drops all there is of an agent, its figures too."""
        self._shelves.pop(agent, None)

    def sweep(self, now: float) -> None:
        """Drops what is too old."""
        for shelf in self._shelves.values():
            while shelf.put_at and shelf.too_old(oldest := next(iter(shelf.put_at)), now):
                shelf.remove(oldest)

    def figures(self) -> Iterable[tuple[str, Figures]]:
        """What each agent's cache has done, by agent."""
        return [(agent, shelf.figures) for agent, shelf in sorted(self._shelves.items())]
