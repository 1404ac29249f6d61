"""Carries calls to agents that have no ready worker: holds each until one is ready, then passes bytes through.

It is the last endpoint of every agent in Envoy. It knows no types: every call, of whatever cardinality, is two
streams of messages as bytes, with metadata and a status around them.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from agentruntime import errors, log, names, status
from grpc import aio

from uapi_gateway.registry import Endpoint, Registry, Target
from uapi_gateway.sockets import split_endpoint
from uapi_gateway.xds import routes
from uapi_gateway.xds.routes import AGENT_HEADER, CLUSTER_HEADER

_log = log.get("uapi_gateway.relay")
# The platform's limit for a message to an agent (text_generation.proto); what comes back only must not drown us.
LONGEST_REQUEST_BYTES = 4 * 2**20
_LONGEST_RESPONSE_BYTES = 64 * 2**20
_HOP_BY_HOP = frozenset((CLUSTER_HEADER, "user-agent", "te", "content-type", "x-forwarded-proto"))
# Between two looks at an endpoint that is said to be ready and does not accept.
_RETRY_S = 0.1
# Of a call whose worker is lost, in all.
_ATTEMPTS = 3


def decide(target: Target | None, name: str, *, expired: bool) -> errors.AgentError | None:
    """What a call must be told that cannot be forwarded now, or None if it should wait.

    Args:
        target: what the name stands for; it has no endpoint that can be reached.
        name: as the caller gave it.
        expired: the call has waited for as long as it may.
    """
    if target is None:
        return errors.AgentNotFound(name)
    agent = target.agent
    if agent.stopped:
        return errors.AgentStopped(
            f"agent '{agent.agent_id}' is stopped; start it with: {names.run_command(agent.image, agent.agent_id)}",
            metadata={"agent": agent.agent_id, "image": agent.image},
        )
    asleep = agent.lease is None and agent.replicas == 0
    if expired or asleep:
        why = next((e.reason for e in target.endpoints if e.reason), "") or agent.reason
        if asleep:
            why += f"; `{names.run_command(agent.image, agent.agent_id, 1)}` starts one"
        return errors.AgentNotReady(
            f"agent '{name}' is not ready: {why or 'its worker cannot be reached'}",
            metadata={"agent": agent.agent_id},
        )
    return None


class Relay:
    """The relay's wait for a worker, and its pass-through."""

    def __init__(self, registry: Registry, wait_s: float) -> None:
        self._registry = registry
        self._wait_s = wait_s
        self._turn = itertools.count()
        self._waiting: set[asyncio.Event] = set()
        registry.listeners.append(self._changed)

    def _changed(self, _agent_id: str) -> None:
        for event in self._waiting:
            event.set()

    async def endpoint(self, name: str, remaining_s: float | None) -> Endpoint:
        """An endpoint of an agent or worker that accepts connections, as soon as there is one.

        Raises:
            AgentNotFound: nobody has that name.
            AgentStopped: it will not start by itself.
            AgentNotReady: none became ready within the caller's time, or the relay's own patience.
        """
        # A little less than the caller's own time, so that the reason reaches it.
        patience_s = self._wait_s if remaining_s is None else min(self._wait_s, remaining_s * 0.95 - 0.02)
        deadline = time.monotonic() + patience_s
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            while True:
                changed.clear()
                target = self._registry.find(name)
                ready = target.ready if target else ()
                start = next(self._turn)
                for index in range(len(ready)):
                    candidate = ready[(start + index) % len(ready)]
                    if await accepts(candidate.dialled):
                        return candidate
                left_s = deadline - time.monotonic()
                if refusal := decide(target, name, expired=left_s <= 0):
                    raise refusal
                try:
                    # What is said to be ready and is not may come without a change of the registry.
                    async with asyncio.timeout(min(left_s, _RETRY_S) if ready else left_s):
                        await changed.wait()
                except TimeoutError:
                    continue
        finally:
            self._waiting.discard(changed)

    async def pass_through(
        self, method: str, requests: AsyncIterator[bytes], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        """One call, from its first message to its status."""
        metadata = [(key, value) for key, value in context.invocation_metadata() or () if key not in _HOP_BY_HOP]
        name = next((str(value) for key, value in metadata if key == AGENT_HEADER), "")
        kept = Kept(requests)
        for attempt in range(_ATTEMPTS):
            try:
                endpoint = await self.endpoint(name, context.time_remaining())
            except errors.AgentError as error:
                _finish(context, error)
                return
            try:
                async for message in forward(endpoint.dialled, method, kept, context, metadata):
                    yield message
                return
            except errors.Unavailable as lost:
                again = kept.complete and routes.may_repeat(self._plan(), method, name, endpoint.worker_id)
                if attempt + 1 == _ATTEMPTS or not again:
                    _finish(context, lost)
                    return

    def _plan(self) -> routes.RoutePlan:
        return routes.plan(self._registry.agents(), self._registry.worker_ids())


class Kept:
    """Request messages that can be sent once more, as long as they are not many bytes."""

    def __init__(self, requests: AsyncIterator[bytes]) -> None:
        self._requests = requests
        self._messages: list[bytes] = []
        self._bytes = 0

    @property
    def complete(self) -> bool:
        """All that has been sent is still here."""
        return self._bytes <= LONGEST_REQUEST_BYTES

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for message in list(self._messages):
            yield message
        async for message in self._requests:
            self._bytes += len(message)
            if self.complete:
                self._messages.append(message)
            else:
                self._messages.clear()
            yield message


async def forward(
    address: str,
    method: str,
    requests: Kept,
    context: aio.ServicerContext[Any, Any],
    metadata: list[tuple[str, str | bytes]],
) -> AsyncIterator[bytes]:
    """Makes the same call at `address`, and hands back all that comes: messages, metadata and status.

    Raises:
        Unavailable: the connection broke before anything came back.
    """
    # A channel of its own: one that is kept would wait out its back-off on a socket where another worker is by now.
    async with relay_channel(address) as channel:
        start: Any = channel.stream_stream(method)
        call = start(aiter(requests), metadata=metadata, timeout=context.time_remaining())
        try:
            initial = await call.initial_metadata()
            # What the other side has sent has at least a content type of its own making; a broken connection nothing.
            code = await call.code() if call.done() else None
            if code is grpc.StatusCode.UNAVAILABLE and not initial and not await call.trailing_metadata():
                raise errors.Unavailable("the worker ended during the call", reason="WORKER_LOST")
            await context.send_initial_metadata(initial)
            async for message in call:
                yield message
        except aio.AioRpcError:
            # Its code, details and trailers are read below, as those of a call that went well.
            pass
        finally:
            if not call.done():
                call.cancel()
        context.set_trailing_metadata(await call.trailing_metadata())
        context.set_code(await call.code())
        context.set_details(await call.details() or "")


def _finish(context: aio.ServicerContext[Any, Any], error: errors.AgentError) -> None:
    """Gives the call the status of an error; the handler must return then."""
    context.set_code(status.code_of(error))
    context.set_details(error.message)
    context.set_trailing_metadata(((status.DETAILS_KEY, status.encode(error)),))


def relay_channel(address: str) -> aio.Channel:
    """A channel to an endpoint that nobody else uses."""
    target = address if address.startswith("unix:") else f"dns:///{address}"
    return aio.insecure_channel(
        target,
        options=[
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", _LONGEST_RESPONSE_BYTES),
            ("grpc.enable_retries", 0),
        ],
    )


async def accepts(address: str) -> bool:
    """Somebody listens there. Local sockets answer at once; others get a second."""
    host, port = split_endpoint(address)
    try:
        async with asyncio.timeout(1.0):
            opening = asyncio.open_connection(host, port) if port else asyncio.open_unix_connection(host)
            _reader, writer = await opening
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


class RelayHandler(grpc.GenericRpcHandler):
    """Takes every method there is."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return bytes_handler(
            handler_call_details.method,
            self._relay.pass_through,
        )


def bytes_handler(
    method: str,
    behaviour: Callable[
        [str, AsyncIterator[bytes], aio.ServicerContext[Any, Any]],
        AsyncIterator[bytes],
    ],
) -> Any:
    """A handler for a method of any cardinality: on the wire, each is a stream both ways."""

    async def handle(requests: AsyncIterator[bytes], context: aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        async for response in behaviour(method, requests, context):
            yield response

    return grpc.stream_stream_rpc_method_handler(handle)
