"""Carries the calls that Envoy cannot send to a worker: it holds each until one is ready, and passes bytes through.

It is the last endpoint of every agent in Envoy, and the first for methods whose answers are kept. It knows no types:
every call, of whatever cardinality, is two streams of messages as bytes, with metadata and a status around them.
"""

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
from agentruntime import errors, names
from grpc import aio

from uapi_gateway import caching, response_cache, waking
from uapi_gateway.ejections import Ejections
from uapi_gateway.forwarding import Allowance, Kept, Lease, Lines, Metadata, Reply, ask, bytes_handler, forward
from uapi_gateway.load import Load
from uapi_gateway.outward import Outward
from uapi_gateway.registry import Agent, Endpoint, Registry, Target
from uapi_gateway.settings import Settings
from uapi_gateway.xds.routes import AGENT_HEADER, CACHE_HEADER, CLUSTER_HEADER

# The platform's limit for a message to an agent (text_generation.proto); what comes back only must not drown us.
LONGEST_REQUEST_BYTES = 4 * 2**20
_HOP_BY_HOP = frozenset((CLUSTER_HEADER, "user-agent", "te", "content-type", "x-forwarded-proto"))
# Between two looks at an endpoint that is said to be ready and does not accept.
_RETRY_S = 0.1
# Of a call whose worker is lost, in all.
_ATTEMPTS = 3
# What the caller's deadline is undercut by, so that the reason reaches it: a share, and a bound for it.
_MARGIN_SHARE, _MARGIN_S, _HOP_S = 0.05, 0.25, 0.02


def decide(target: Target, *, expired: bool, pool_away: bool = False) -> errors.AgentError | None:
    """What a call must be told that cannot be forwarded now, or None if it should wait.

    Args:
        target: what the name stands for; it has no endpoint that can be reached.
        expired: the call has waited for as long as it may.
        pool_away: the pool, which would have to start a worker, does not answer.
    """
    agent = target.agent
    if agent.stopped:
        return errors.AgentStopped(
            f"agent '{agent.agent_id}' is stopped; start it with: {names.run_command(agent.image, agent.agent_id)}",
            metadata={"agent": agent.agent_id, "image": agent.image},
        )
    if not expired:
        return None
    why = next((e.reason for e in target.endpoints if e.reason), "") or agent.reason
    if agent.asleep:
        why = "it sleeps and has not woken in time"
    if pool_away and agent.lease is None:
        why += "; the pool does not answer, `agent status` says what runs"
    return errors.AgentNotReady(
        f"agent '{target.name}' is not ready: {why or 'its worker cannot be reached'}",
        metadata={"agent": agent.agent_id},
    )


def patience_s(remaining_s: float | None) -> float | None:
    """How long a call may wait that has so much time left: a little less, so that the reason reaches the caller."""
    if remaining_s is None:
        return None
    return remaining_s - min(remaining_s * _MARGIN_SHARE, _MARGIN_S) - _HOP_S


@dataclass(frozen=True)
class Figures:
    """What the relay does and has done, for the metrics page."""

    # Calls that wait for a worker, by agent.
    waiting: Mapping[str, int] = field(default_factory=dict)
    wakes: Iterable[tuple[str, waking.Figures]] = ()
    caches: Iterable[tuple[str, response_cache.Figures]] = ()


@dataclass(frozen=True)
class _Call:
    """One call, as it came."""

    method: str
    name: str
    metadata: Metadata
    requests: Kept
    context: aio.ServicerContext[Any, Any]


@dataclass
class _Lost:
    """What the attempts at a call before this one came to."""

    # Where the last was made.
    address: str = ""
    # How the first ended that a worker may have seen: what the caller must know if none succeeds.
    error: errors.Unavailable | None = None

    def note(self, lost: errors.Unavailable) -> None:
        if lost.begun and self.error is None:
            self.error = lost


@dataclass
class _Wait:
    """How far one call has got with waiting."""

    placed: bool = False
    wake: waking.Wake | None = None


class Relay:
    """The wait for a worker, and the pass-through."""

    def __init__(
        self,
        registry: Registry,
        pool: aio.Channel,
        load: Load,
        ejections: Ejections,
        *,
        settings: Settings,
        outward: Outward | None = None,
    ) -> None:
        self._registry = registry
        self._load = load
        self._ejections = ejections
        self._wait_s = settings.relay_wait_s
        self._wake_wait_s = settings.relay_wake_wait_s
        self._allowance = Allowance(settings.relay_held_bytes)
        self._lines = Lines(outward)
        self._waker = waking.Waker(registry, pool)
        self.caching = caching.Caching(registry)
        self._waiting: Counter[str] = Counter()
        # Done as soon as the registry hears of the agent.
        self._news: dict[str, asyncio.Future[None]] = {}
        registry.listeners.append(self._changed)

    def figures(self) -> Figures:
        return Figures(dict(self._waiting), self._waker.figures(), self.caching.figures())

    async def close(self) -> None:
        await self._lines.close()

    def _changed(self, agent_id: str) -> None:
        news = self._news.pop(agent_id, None)
        if news is not None and not news.done():
            news.set_result(None)

    def _next_news(self, agent_id: str) -> "asyncio.Future[None]":
        if agent_id not in self._news:
            self._news[agent_id] = asyncio.get_running_loop().create_future()
        return self._news[agent_id]

    @contextlib.contextmanager
    def _place(self, agent: Agent) -> Iterator[None]:
        """A place among the calls that wait for an agent.

        Raises:
            QueueFull: as many wait as may.
        """
        if self._waiting[agent.agent_id] >= agent.queue:
            raise errors.QueueFull(
                f"{agent.queue} calls wait for agent '{agent.agent_id}' already; try again later",
                metadata={"agent": agent.agent_id, "queue": str(agent.queue)},
            )
        self._waiting[agent.agent_id] += 1
        try:
            yield
        finally:
            self._waiting[agent.agent_id] -= 1
            if not self._waiting[agent.agent_id]:
                del self._waiting[agent.agent_id]

    @contextlib.contextmanager
    def _joined(self, agent_id: str) -> Iterator[waking.Wake]:
        wake = self._waker.join(agent_id)
        try:
            yield wake
        finally:
            self._waker.leave(agent_id, wake)

    @contextlib.asynccontextmanager
    async def worker(self, name: str, remaining_s: float | None, avoid: str = "") -> AsyncIterator[Lease]:
        """A worker of an agent, or that very worker, that accepts connections, as soon as there is one.

        Args:
            name: of the agent or worker.
            remaining_s: the caller's time; None for no deadline.
            avoid: an address that has just refused the call, and is not tried again at once.

        Raises:
            AgentNotFound: nobody has that name.
            AgentStopped: it will not start by itself.
            AgentNotReady: none became ready within the caller's time, or the relay's own patience.
            CircuitOpen: all fail, and get no calls for a while.
            QueueFull: too many calls wait already.
            AgentError: it sleeps, and the pool could not wake it.
        """
        began = last_asleep = time.monotonic()
        own_s = patience_s(remaining_s)
        with contextlib.ExitStack() as place:
            wait = _Wait()
            while True:
                target = self._registry.require(name)
                ready = self._ready(target)
                others = [endpoint for endpoint in ready if endpoint.dialled != avoid]
                avoid = ""
                # Taken now: what changes from here on ends the wait.
                news = self._next_news(target.agent.agent_id)
                async with self._lines.to_any(others) as lease:
                    if lease is not None:
                        if wait.wake is not None:
                            wait.wake.served = True
                        place.close()
                        yield lease
                        return
                now = time.monotonic()
                wakes = self._wakes(target.agent)
                if wakes:
                    # Once it is awake, its workers have as long as those of any agent.
                    last_asleep = now
                until = began + self._wake_wait_s if wakes else last_asleep + self._wait_s
                left_s = until - now if own_s is None else min(until, began + own_s) - now
                if refusal := decide(target, expired=left_s <= 0, pool_away=self._waker.pool_away):
                    raise refusal
                if not wait.placed:
                    place.enter_context(self._place(target.agent))
                    wait.placed = True
                if wakes:
                    await self._wake(target.agent, news, left_s, wait, place)
                else:
                    # What is said to be ready and is not may come without a change of the registry.
                    await asyncio.wait((news,), timeout=min(left_s, _RETRY_S) if ready else left_s)

    def _ready(self, target: Target) -> tuple[Endpoint, ...]:
        """The workers to try.

        Raises:
            CircuitOpen: trying is no use.
        """
        if target.agent.stopped:
            return ()
        agent_id = target.agent.agent_id
        if self._ejections.circuit_open(target, time.monotonic()):
            raise errors.CircuitOpen(
                f"all workers of agent '{agent_id}' fail their calls and get none for some seconds; try again later",
                metadata={"agent": agent_id},
            )
        if target.ready:
            return target.ready
        wake = self._waker.find(agent_id)
        woken = wake.endpoints if wake else ()
        return tuple(each for each in woken if target.name in (agent_id, each.worker_id))

    def _wakes(self, agent: Agent) -> bool:
        """The agent sleeps, or wakes just now."""
        wake = self._waker.find(agent.agent_id)
        return agent.lease is None and (agent.asleep or (wake is not None and not wake.task.done()))

    async def _wake(
        self, agent: Agent, news: "asyncio.Future[None]", left_s: float, wait: _Wait, place: contextlib.ExitStack
    ) -> None:
        """Waits until the agent is awake, or the registry has news of it.

        Raises:
            AgentError: it cannot be woken.
        """
        agent_id = agent.agent_id
        found = self._waker.find(agent_id)
        if found is not None and found.endpoints:
            # It woke, and is not to be reached; the registry does not know yet.
            self._waker.discard(agent_id)
            await asyncio.wait((news,), timeout=min(left_s, _RETRY_S))
            return
        if wait.wake is None or wait.wake.task.done():
            wait.wake = place.enter_context(self._joined(agent_id))
        await asyncio.wait((news, wait.wake.task), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if wait.wake.error is not None:
            # Without the frames that others who got the same one have left in it.
            raise wait.wake.error.with_traceback(None)

    async def pass_through(
        self, method: str, requests: AsyncIterator[bytes], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        """One call, from its first message to its status."""
        metadata = [(key, value) for key, value in context.invocation_metadata() or () if key not in _HOP_BY_HOP]
        name = next((str(value) for key, value in metadata if key == AGENT_HEADER), "")
        target = self._registry.find(name)
        kept = Kept(requests, self._allowance, target.agent.agent_id if target else "", LONGEST_REQUEST_BYTES)
        try:
            async for message in self._answer(_Call(method, name, metadata, kept, context)):
                yield message
        except errors.AgentError:
            # A status without headers is Envoy's measure of an endpoint: the third refusal in a row would take the
            # relay out of the agent's endpoints, and while it is out the last worker's circuit could not open.
            await context.send_initial_metadata(())
            raise
        finally:
            kept.close()

    async def _answer(self, call: _Call) -> AsyncIterator[bytes]:
        target = self._registry.require(call.name)
        request = await call.requests.only() if caching.is_unary(target.agent, call.method) else None
        if request is None:
            async for message in self._stream(call, target.agent):
                yield message
            return
        question = self.caching.question(target, call.method, call.metadata, request)
        if question and (kept := self.caching.look_up(question)):
            reply = Reply(kept.message, kept.initial, _marked(kept.trailing, caching.HIT), grpc.StatusCode.OK, "")
        else:
            reply, endpoint = await self._ask(call, target.agent, request)
            if question:
                if reply.message is not None:
                    answer = response_cache.Answer(reply.message, reply.initial, _unmarked(reply.trailing))
                    self.caching.keep(question, endpoint, answer)
                reply = replace(reply, trailing=_marked(reply.trailing, caching.MISS))
        await call.context.send_initial_metadata(reply.initial)
        if reply.message is not None:
            yield reply.message
        call.context.set_trailing_metadata(reply.trailing)
        call.context.set_code(reply.code)
        call.context.set_details(reply.details)

    @contextlib.asynccontextmanager
    async def _next_worker(self, call: _Call, lost: _Lost) -> AsyncIterator[Lease]:
        """A worker for the next attempt at a call.

        Raises:
            AgentError: there is none; or how the attempt ended that may have had effects.
        """
        async with contextlib.AsyncExitStack() as stack:
            try:
                lease = await stack.enter_async_context(
                    self.worker(call.name, call.context.time_remaining(), lost.address)
                )
            except errors.AgentError as refusal:
                raise lost.error or refusal from refusal.__cause__
            lost.address = lease.endpoint.dialled
            yield lease

    async def _ask(self, call: _Call, agent: Agent, request: bytes) -> tuple[Reply, Endpoint]:
        """A worker's answer to a unary call, and whose it is."""
        before = _Lost()
        with self._load.call(agent.agent_id) as counted:
            for attempt in itertools.count(1):
                async with self._next_worker(call, before) as lease:
                    counted.carried()
                    try:
                        remaining_s = call.context.time_remaining()
                        return await ask(
                            lease.channel, call.method, request, call.metadata, remaining_s
                        ), lease.endpoint
                    except errors.Unavailable as lost:
                        repeatable = not lost.begun or caching.may_repeat(agent, call.method)
                        before.note(lost)
                        if attempt == _ATTEMPTS or not repeatable:
                            raise before.error or lost from None
                counted.waits()
        raise AssertionError("never reached")

    async def _stream(self, call: _Call, agent: Agent) -> AsyncIterator[bytes]:
        before = _Lost()
        with self._load.call(agent.agent_id) as counted:
            for attempt in itertools.count(1):
                async with self._next_worker(call, before) as lease:
                    counted.carried()
                    try:
                        async for message in forward(
                            lease.channel, call.method, call.requests, call.context, call.metadata
                        ):
                            yield message
                        return
                    except errors.Unavailable as lost:
                        repeatable = not lost.begun or caching.may_repeat(agent, call.method)
                        before.note(lost)
                        if attempt == _ATTEMPTS or not (repeatable and call.requests.complete):
                            raise before.error or lost from None
                counted.waits()


def _unmarked(trailing: Metadata) -> Metadata:
    return tuple((key, value) for key, value in trailing if key != CACHE_HEADER)


def _marked(trailing: Metadata, how: str) -> Metadata:
    return (*_unmarked(trailing), (CACHE_HEADER, how))


class RelayHandler(grpc.GenericRpcHandler):
    """Takes every method there is. Its server encodes the errors that are raised."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return bytes_handler(handler_call_details.method, self._relay.pass_through)
