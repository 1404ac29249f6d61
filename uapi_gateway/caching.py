"""Decides which calls may be answered out of the response cache, and what makes two calls the same."""

import asyncio
import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from uapi_gateway import descriptors
from uapi_gateway.registry import Agent, CachePolicy, Endpoint, Registry, Target
from uapi_gateway.response_cache import Answer, Figures, ResponseCache
from uapi_gateway.xds.routes import AGENT_HEADER, CACHE_HEADER, CONVERSATION_HEADER

HIT, MISS = "hit", "miss"
# What a call brings along that says neither who calls nor what is asked.
_SILENT = frozenset(("traceparent", "tracestate", "user-agent", "grpc-accept-encoding", AGENT_HEADER))
_SWEEP_S = 10.0
Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Methods:
    """What an agent's own descriptors say about its methods; each by "/service/Method"."""

    # One message each way.
    unary: frozenset[str]
    # May be made again though a worker may have seen the call.
    idempotent: frozenset[str]


@lru_cache(maxsize=1024)
def _methods(serialized: bytes, services: tuple[str, ...]) -> Methods:
    known = list(descriptors.methods_of(serialized))
    # Its types are the platform's own, whether the agent sends them along or not.
    if descriptors.TEXT_GENERATION in services and not any(m.service == descriptors.TEXT_GENERATION for m in known):
        every = descriptors.methods_of(descriptors.platform_set())
        known += [method for method in every if method.service == descriptors.TEXT_GENERATION]
    return Methods(
        unary=frozenset(method.path for method in known if not method.streams),
        idempotent=frozenset(method.path for method in known if method.idempotent),
    )


def is_unary(agent: Agent, method: str) -> bool:
    """The method takes one message and answers with one, as far as the agent's descriptors say."""
    return method in _methods(agent.descriptors, agent.services).unary


def may_repeat(agent: Agent, method: str) -> bool:
    """A call of the method may be made again after a worker may have seen it."""
    return agent.idempotent and method in _methods(agent.descriptors, agent.services).idempotent


def cacheable(agent: Agent, method: str) -> bool:
    """Answers of the method may be given again: unary, idempotent, and no question about the agent's health."""
    if agent.cache is None or agent.stopped:
        return False
    return is_unary(agent, method) and may_repeat(agent, method) and not method.endswith("/GetHealth")


def key_of(agent: Agent, method: str, metadata: Metadata, request: bytes) -> bytes:
    """Equal for calls that may get the same answer: same caller, agent, method and request.

    Until callers have identities, whatever else a call brings along may be what the agent knows them by: all metadata
    counts but what says nothing about either.
    """
    digest = hashlib.blake2b(digest_size=32)

    def add(part: bytes) -> None:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)

    for part in (agent.agent_id, method):
        add(part.encode())
    add(request)
    # Values of one key come in an order that may mean something.
    for key, value in sorted((pair for pair in metadata if pair[0] not in _SILENT), key=lambda pair: pair[0]):
        add(key.encode())
        add(value if isinstance(value, bytes) else value.encode())
    return digest.digest()


@dataclass(frozen=True)
class Question:
    """A call whose answer may be kept."""

    agent: Agent
    policy: CachePolicy
    key: bytes


class Caching:
    """The response cache as the relay uses it: it follows the registry, and is swept."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._cache = ResponseCache()
        registry.listeners.append(self._changed)

    def _changed(self, agent_id: str) -> None:
        agent = self._registry.get(agent_id)
        if agent is None:
            self._cache.forget(agent_id)
        else:
            self._cache.keep(agent_id, _revision(agent), agent.cache)

    def question(self, target: Target, method: str, metadata: Metadata, request: bytes) -> Question | None:
        """What is asked, or None if the answer must be fresh: who names a worker wants that one's."""
        agent = target.agent
        if agent.cache is None or not cacheable(agent, method) or target.name != agent.agent_id:
            return None
        if any(key in (CONVERSATION_HEADER, CACHE_HEADER) for key, _ in metadata):
            return None
        return Question(agent, agent.cache, key_of(agent, method, metadata, request))

    def look_up(self, question: Question) -> Answer | None:
        """The answer, if it is here."""
        agent = question.agent
        return self._cache.get(agent.agent_id, _revision(agent), question.key, time.monotonic())

    def keep(self, question: Question, answered_by: Endpoint, answer: Answer) -> None:
        """Keeps an OK answer, if its worker is of the revision that was asked, and the agent still is."""
        asked, now = question.agent, self._registry.get(question.agent.agent_id)
        if now is None or _revision(now) != _revision(asked) or answered_by.revision != asked.revision:
            return
        policy = now.cache
        if policy is not None:
            self._cache.put(
                asked.agent_id, _revision(asked), question.key, answer, policy=policy, now=time.monotonic()
            )

    def figures(self) -> Iterable[tuple[str, Figures]]:
        """What each agent's cache has done, by agent."""
        return self._cache.figures()

    async def run(self) -> None:
        """Drops what is too old, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._cache.sweep(time.monotonic())


def _revision(agent: Agent) -> str:
    """An agent that was removed and run anew under its name counts its revisions from one again."""
    return f"{agent.revision} {agent.image_digest}"
