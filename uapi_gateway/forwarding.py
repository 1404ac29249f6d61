"""Makes a caller's call once more, at a worker: shared channels to workers, and bytes passed both ways."""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from agentruntime import errors, status
from grpc import aio

from uapi_gateway.outward import Options, Outward
from uapi_gateway.registry import Endpoint
from uapi_gateway.sockets import split_endpoint

_LONGEST_RESPONSE_BYTES = 64 * 2**20
# A channel that nobody uses is closed after so long.
_IDLE_S = 10.0
_OPTIONS: Options = [
    # Else it would share the connection, and its back-off, of one that was here before.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", _LONGEST_RESPONSE_BYTES),
    ("grpc.enable_retries", 0),
]
# What a message that is kept costs beside its bytes: the object, its header and its place in a list.
MESSAGE_BYTES = 64
# A worker that refuses a stream says so at once; metadata that comes before any message waits so long for that.
_REFUSAL_S = 0.1
# How gRPC's core begins the details of a call that it could not send for want of a connection.
_WRITE_FAILED = "Internal error from Core"
_NOT_CONNECTED = "failed to connect"
# What a channel says of itself while it can still carry calls, or will as soon as it has connected.
_USABLE = (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.CONNECTING)
Metadata = Sequence[tuple[str, str | bytes]]


class Allowance:
    """How many bytes may be held in all, and by one owner: no more than it leaves for the others."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: Counter[str] = Counter()
        self.held_bytes = 0

    def take(self, owner: str, size_bytes: int) -> bool:
        """Says whether there is room, and takes it."""
        held_bytes = self.held_bytes + size_bytes
        if self._held[owner] + size_bytes > self._max_bytes - held_bytes:
            return False
        self._held[owner] += size_bytes
        self.held_bytes = held_bytes
        return True

    def give_back(self, owner: str, size_bytes: int) -> None:
        self.held_bytes -= size_bytes
        self._held[owner] -= size_bytes
        if not self._held[owner]:
            del self._held[owner]


class Kept:
    """The request messages of one call, which can be sent once more as long as there is room to keep them.

    Each iteration is an attempt, and ends those before it. They share one read of the caller's stream: an attempt
    that has failed may have been waiting for the next message, which is the next attempt's.
    """

    def __init__(self, requests: AsyncIterator[bytes], allowance: Allowance, owner: str, longest_bytes: int) -> None:
        self._requests = requests
        self._allowance = allowance
        self._owner = owner
        # A message as long as that fits, too.
        self._longest_bytes = longest_bytes + MESSAGE_BYTES
        self._messages: list[bytes] = []
        self._bytes = 0
        self._attempt = 0
        # The message that is read now; None is the end.
        self._reading: asyncio.Task[bytes | None] | None = None
        # All that has been sent is still here.
        self.complete = True

    async def only(self) -> bytes | None:
        """The one message of a unary call; None if the caller sent none.

        Raises:
            QueueFull: the relay holds too much already.
        """
        message = await anext(aiter(self), None)
        if not self.complete:
            raise errors.QueueFull("the gateway holds as much for calls that wait as it may; try again later")
        return message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._attempt += 1
        attempt = self._attempt
        for message in list(self._messages):
            yield message
        while attempt == self._attempt:
            if self._reading is None:
                self._reading = asyncio.ensure_future(_next(self._requests))
                # A failure counts as seen: the caller has gone, and maybe nobody waits any more.
                self._reading.add_done_callback(lambda done: done.cancelled() or done.exception())
            read = await asyncio.shield(self._reading)
            if read is None or attempt != self._attempt:
                return
            self._reading = None
            self._keep(read)
            yield read

    def _keep(self, message: bytes) -> None:
        if not self.complete:
            return
        size_bytes = len(message) + MESSAGE_BYTES
        fits = self._bytes + size_bytes <= self._longest_bytes
        if fits and self._allowance.take(self._owner, size_bytes):
            self._messages.append(message)
            self._bytes += size_bytes
        else:
            self.release()

    def release(self) -> None:
        """Keeps nothing any more."""
        self.complete = False
        self._messages.clear()
        self._allowance.give_back(self._owner, self._bytes)
        self._bytes = 0

    def close(self) -> None:
        """Keeps nothing and reads nothing any more."""
        self.release()
        if self._reading is not None:
            self._reading.cancel()


async def _next(messages: AsyncIterator[bytes]) -> bytes | None:
    """None at the end."""
    return await anext(messages, None)


class _Line:
    """A channel to one address, for all calls that go there at a time."""

    def __init__(self, endpoint: Endpoint, outward: Outward) -> None:
        self.calls = 0
        self.channel = outward.channel(endpoint.address, endpoint.dialled, _OPTIONS)
        self.accepted = asyncio.ensure_future(accepts(endpoint.dialled))
        self.closing: asyncio.TimerHandle | None = None
        # It had a connection, for all that can be seen: its state is read only now and then.
        self.connected = False

    @property
    def usable(self) -> bool:
        """Its connection has not broken. One that has would keep the next call waiting for its back-off."""
        state = self.channel.get_state()
        self.connected |= state is grpc.ChannelConnectivity.READY
        # Idle is a channel that nobody has used yet, and one whose connection has ended.
        return state in _USABLE or (state is grpc.ChannelConnectivity.IDLE and not self.connected)


@dataclass(frozen=True)
class Lease:
    """The use of a channel by one call."""

    endpoint: Endpoint
    channel: aio.Channel


class Lines:
    """Channels to workers: one for each address, opened when it is needed and closed when it is not."""

    def __init__(self, outward: Outward | None = None) -> None:
        self._outward = outward or Outward()
        self._lines: dict[str, _Line] = {}
        self._turn = itertools.count()
        self._ending: set[asyncio.Task[None]] = set()

    def calls(self, address: str) -> int:
        """How many calls go there now."""
        line = self._lines.get(address)
        return line.calls if line else 0

    @contextlib.asynccontextmanager
    async def to_any(self, endpoints: Iterable[Endpoint]) -> AsyncIterator[Lease | None]:
        """A channel to the endpoint with the fewest calls from here, of those that accept; None if none does."""
        left = list(endpoints)
        while left:
            turn = next(self._turn)
            order = [left[(turn + index) % len(left)] for index in range(len(left))]
            chosen = min(order, key=lambda endpoint: self.calls(endpoint.dialled))
            async with self._to(chosen) as lease:
                if lease is not None:
                    yield lease
                    return
            left.remove(chosen)
        yield None

    @contextlib.asynccontextmanager
    async def _to(self, endpoint: Endpoint) -> AsyncIterator[Lease | None]:
        address = endpoint.dialled
        line = self._lines.get(address)
        if line is None or not line.usable:
            line = self._lines[address] = _Line(endpoint, self._outward)
        # Before anything is waited for, so that a thousand calls at once spread.
        line.calls += 1
        if line.closing is not None:
            line.closing.cancel()
        try:
            if await asyncio.shield(line.accepted):
                try:
                    yield Lease(endpoint, line.channel)
                finally:
                    line.connected = True
            else:
                self._forget(address, line)
                yield None
        finally:
            line.calls -= 1
            if line.calls == 0:
                gone = self._lines.get(address) is not line or not line.usable
                line.closing = asyncio.get_running_loop().call_later(
                    0 if gone else _IDLE_S, self._close, address, line
                )

    def _forget(self, address: str, line: _Line) -> None:
        if self._lines.get(address) is line:
            del self._lines[address]

    def _close(self, address: str, line: _Line) -> None:
        self._forget(address, line)
        task = asyncio.ensure_future(line.channel.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Closes all of them."""
        for line in list(self._lines.values()):
            await line.channel.close()
        await asyncio.gather(*self._ending)


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


@dataclass(frozen=True)
class Reply:
    """How a unary call ended."""

    # None unless it is OK.
    message: bytes | None
    initial: Metadata
    trailing: Metadata
    code: grpc.StatusCode
    details: str


async def ask(
    channel: aio.Channel, method: str, request: bytes, metadata: Metadata, timeout_s: float | None
) -> Reply:
    """Makes a unary call.

    Raises:
        Unavailable: the connection broke before anything came back.
        WorkerDraining: the worker has not begun it.
        AgentNotReady: the worker could not be reached.
    """
    start: Any = channel.unary_unary(method)
    call = start(request, metadata=metadata, timeout=timeout_s)
    try:
        initial = tuple(await call.initial_metadata())
        code, trailing = await call.code(), tuple(await call.trailing_metadata())
        details = await call.details() or ""
        _check_lost(code, initial, trailing, details)
        message = await call if code is grpc.StatusCode.OK else None
        return Reply(message, initial, trailing, code, details)
    finally:
        if not call.done():
            call.cancel()


async def forward(
    channel: aio.Channel,
    method: str,
    requests: Kept,
    context: aio.ServicerContext[Any, Any],
    metadata: Metadata,
) -> AsyncIterator[bytes]:
    """Makes a call of any cardinality, and hands back all that comes: messages, metadata and status.

    Raises:
        Unavailable: the connection broke before anything came back.
        WorkerDraining: the worker has not begun it.
        AgentNotReady: the worker could not be reached.
    """
    start: Any = channel.stream_stream(method)
    call = start(aiter(requests), metadata=metadata, timeout=context.time_remaining())
    outcome = _Outcome(call)
    responses = aiter(call)
    reading = asyncio.ensure_future(_next(responses))
    try:
        initial = await call.initial_metadata()
        # No longer: a caller may wait for the metadata before it says more.
        await asyncio.wait((reading,), timeout=_REFUSAL_S)
        if reading.done() and (reading.exception() is not None or reading.result() is None):
            code, trailing, details = await outcome.get()
            _check_lost(code, initial, trailing, details)
        # From here on it cannot be made again.
        requests.release()
        await context.send_initial_metadata(initial)
        message = await reading
        while message is not None:
            yield message
            message = await _next(responses)
    except aio.AioRpcError:
        # Its code, details and trailers are read below, as those of a call that went well.
        pass
    finally:
        if not call.done():
            call.cancel()
    code, trailing, details = await outcome.get()
    context.set_trailing_metadata(trailing)
    context.set_code(code)
    context.set_details(details)


class _Outcome:
    """The status of a call as the other side sent it.

    Where a message is written to a call that has just ended, grpc.aio puts one of its own in its place.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._sent: tuple[grpc.StatusCode, Metadata, str] | None = None
        call.add_done_callback(self._take)

    def _take(self, call: Any) -> None:
        if self._sent is None:
            code, trailing, details = (_now(each) for each in (call.code(), call.trailing_metadata(), call.details()))
            if details != _WRITE_FAILED:
                self._sent = code, trailing, details or ""

    async def get(self) -> tuple[grpc.StatusCode, Metadata, str]:
        """Code, trailing metadata and details."""
        call = self._call
        now = await call.code(), await call.trailing_metadata(), await call.details() or ""
        return self._sent or now


def _now(coroutine: Any) -> Any:
    """What a coroutine returns that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError("the call has not ended")


def _check_lost(code: grpc.StatusCode, initial: Metadata, trailing: Metadata, details: str) -> None:
    if code is not grpc.StatusCode.UNAVAILABLE:
        return
    if any(key == status.NOT_BEGUN_KEY for key, _ in (*initial, *trailing)):
        raise errors.WorkerDraining("the worker takes no more calls")
    # What the other side has sent has at least a content type of its own making; a broken connection nothing.
    if not initial and not trailing:
        if details.startswith(_NOT_CONNECTED):
            never_sent = errors.AgentNotReady("the worker could not be reached")
            never_sent.begun = False
            raise never_sent
        raise errors.Unavailable("the worker ended during the call", reason="WORKER_LOST")


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
