"""Stands before an agent's handlers: counts calls, bounds how many run and wait, and ends them when it must."""

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import grpc
from agentruntime import calls, errors, interceptors, log
from agentruntime.intake import Entry, Intake
from grpc import aio

from agent_worker import threads
from agent_worker.vitals import Vitals

# Health and reflection must answer however busy the agent is.
_EXEMPT = "/grpc."
# Its calls wait, for messages that hold the slots.
_CONVERSATIONS = "/uapi.v1.ConversationService/"
_NO_CONVERSATIONS = (
    "the agent holds no conversations, for it has no on_message; call what it serves with `agent call`"
)
# Streams of reflection at a time, and for how long each: a part of a message that never ends has room in the worker.
_REFLECTING, _REFLECTION_S = 8, 60.0
# For statuses to be sent to callers that still read.
_LAST_WORDS_S = 0.2
# What callers, proxies and the SDK decide by whether a call is made again: true of one call alone.
_OF_ONE_CALL = frozenset((
    "AGENT_NOT_READY", "CIRCUIT_OPEN", "CONNECTION_LOST", "NOT_CONNECTED", "POOL_UNAVAILABLE", "WORKER_DRAINED",
    "WORKER_DRAINING", "WORKER_LOST",
))  # fmt: skip
Context = aio.ServicerContext[Any, Any]
_log = log.get("agent_worker.admission")


class Slots:
    """So many calls at a time, and so many that wait for one of them, in order.

    Messages of conversations take slots too, while they are handled.
    """

    def __init__(self, concurrency: int, queue: int) -> None:
        self._concurrency = concurrency
        self._queue = queue
        self._left = concurrency
        self._granted: deque[Callable[[], None]] = deque()
        # The calls that were not begun yet.
        self.waiting: set[Context] = set()

    @property
    def are_wanted(self) -> bool:
        """Whether somebody waits for one."""
        return bool(self._granted)

    def check(self) -> None:
        """Returns if one more may wait, or needs not.

        Raises:
            QueueFull: as many wait as may.
        """
        if not self._left and len(self._granted) >= self._queue:
            raise errors.QueueFull(
                f"the worker handles {self._concurrency} calls and {self._queue} wait, which is all that may; "
                "try again later, or run more workers"
            )

    def try_take(self) -> bool:
        """Takes one if it is free; `free` it."""
        if not self._left:
            return False
        self._left -= 1
        return True

    def wait(self, granted: Callable[[], None]) -> None:
        """Calls `granted` with one, in the order of asking, or at once."""
        if self.try_take():
            granted()
        else:
            self._granted.append(granted)

    def leave(self, granted: Callable[[], None]) -> None:
        """Waits for none any more."""
        with suppress(ValueError):
            self._granted.remove(granted)

    async def take(self, context: Context) -> None:
        """Waits for a slot; `free` it. A call whose deadline has passed meanwhile gets none.

        Raises:
            QueueFull: as many wait as may.
            DeadlineExceeded: the deadline has passed.
        """
        self.check()
        if not self.try_take():
            await self._wait(context)
        left_s = context.time_remaining()
        # The news of a deadline comes by the event loop, which may be busy.
        if left_s is not None and left_s <= 0:
            self.free()
            raise errors.DeadlineExceeded("the call's deadline passed while it waited; it was not begun")

    async def _wait(self, context: Context) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def granted() -> None:
            if turn.done():
                self.free()  # it has been cancelled, and does not know yet that its turn came
            else:
                turn.set_result(None)

        self.waiting.add(context)
        self._granted.append(granted)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.free()
            self.leave(granted)
            raise
        finally:
            self.waiting.discard(context)

    def free(self) -> None:
        if self._granted:
            self._granted.popleft()()
        else:
            self._left += 1


class Admission(aio.ServerInterceptor):
    """Of one worker.

    Every handler becomes a coroutine or an async generator here, plain ones by way of a thread. A thread cannot be
    ended from outside: a plain handler whose call was ended keeps its slot until it returns.

    Args:
        vitals: where calls are counted.
        executor: for plain handlers, with a thread for each slot.
        concurrency: calls at a time.
        queue: calls that wait beyond those.
        default_timeout_s: for unary calls that come without a deadline.
        held_bytes: of the requests that wait or are handled.
    """

    def __init__(
        self,
        vitals: Vitals,
        executor: Executor,
        *,
        concurrency: int,
        queue: int,
        default_timeout_s: float,
        held_bytes: int,
    ) -> None:
        self._vitals = vitals
        self._executor = executor
        self.slots = Slots(concurrency, queue)
        self._intake = Intake(held_bytes)
        self._reflecting = asyncio.Semaphore(_REFLECTING)
        self._default_timeout_s = default_timeout_s
        self._calls: dict[asyncio.Task[Any], Context] = {}
        self._drains = False

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            asked = handler_call_details.method.startswith(_CONVERSATIONS)
            return _refusal(errors.NoConversations(_NO_CONVERSATIONS)) if asked else None
        exempt = handler_call_details.method.startswith(_EXEMPT)
        try:
            entry = self._intake.enter(() if exempt else handler_call_details.invocation_metadata or ())
        except errors.TooManyCalls as error:
            return _refusal(error)
        kind = ("stream" if handler.request_streaming else "unary") + (
            "_stream" if handler.response_streaming else "_unary"
        )
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        behaviour = getattr(handler, kind)
        if handler_call_details.method.startswith(_CONVERSATIONS):
            behaviour = self._let_wait(behaviour, kind, entry)
        elif not exempt:
            behaviour = self._admit(behaviour, kind, entry)
        elif handler.request_streaming:
            behaviour = self._reflect(behaviour)
        else:
            behaviour = _answered(behaviour, entry)
        if handler.request_streaming:
            return make(behaviour, handler.request_deserializer, handler.response_serializer)
        await entry.expect()
        return make(behaviour, entry.reading(handler.request_deserializer), handler.response_serializer)

    def _reflect(self, behaviour: Any) -> Any:
        async def stream(requests: Any, context: Context) -> AsyncIterator[Any]:
            try:
                async with self._reflecting, asyncio.timeout(_REFLECTION_S):
                    async for response in behaviour(requests, context):
                        yield response
            except TimeoutError:
                raise errors.DeadlineExceeded(
                    f"a stream of reflection lasts {_REFLECTION_S:g} s at most; begin another"
                ) from None

        return stream

    async def drain(self, grace_s: float, over: asyncio.Event) -> None:
        """Refuses new calls; returns when no call is left.

        Those that are after `grace_s`, or once `over` is set, end as `WorkerDrained`.
        """
        self._drains = True
        if self._calls:
            either = [asyncio.create_task(_all(list(self._calls))), asyncio.create_task(over.wait())]
            await asyncio.wait(either, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
            for task in either:
                task.cancel()
        if left := dict(self._calls):
            # The status first: what a handler does about its cancellation may take as long as it likes.
            cuts = [asyncio.create_task(_cut(context, self._last_word(context))) for context in left.values()]
            await asyncio.wait(cuts, timeout=_LAST_WORDS_S)
            for task in left:
                task.cancel()
            await asyncio.wait(list(left), timeout=_LAST_WORDS_S)

    def _last_word(self, context: Context) -> errors.AgentError:
        if context in self.slots.waiting:
            return _draining()
        return errors.WorkerDrained("the worker's grace period was over before the call was")

    def _admit(self, behaviour: Any, kind: str, entry: Entry) -> Any:
        """The behaviour, counted and bounded; an async generator if it was a generator of some kind."""
        if inspect.isasyncgenfunction(behaviour):
            return self._admit_stream(behaviour, entry)
        if inspect.iscoroutinefunction(behaviour):
            return self._admit_call(behaviour, entry, bounded=kind == "unary_unary")
        run = threads.stream if kind.endswith("_stream") else threads.call
        plain = partial(run, self._executor, behaviour, self.slots.free)
        if run is threads.stream:
            return self._admit_stream(plain, entry, frees=True)
        return self._admit_call(plain, entry, bounded=kind == "unary_unary", frees=True)

    def _let_wait(self, behaviour: Any, kind: str, entry: Entry) -> Any:
        """The behaviour, counted, without a slot of its own."""
        if inspect.isasyncgenfunction(behaviour):

            async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
                with self._counted(context, entry):
                    async for response in behaviour(request, context):
                        yield response

            return stream

        async def call(request: Any, context: Context) -> Any:
            with self._counted(context, entry), self._default_deadline(context) as clock:
                async with clock:
                    return await behaviour(request, context)

        return call

    def _admit_stream(self, behaviour: Any, entry: Entry, *, frees: bool = False) -> Any:
        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._counted(context, entry):
                await self.slots.take(context)
                with self._begun(frees=frees):
                    async for response in behaviour(request, context):
                        yield response

        return stream

    def _admit_call(self, behaviour: Any, entry: Entry, *, bounded: bool, frees: bool = False) -> Any:
        async def call(request: Any, context: Context) -> Any:
            with self._counted(context, entry), self._default_deadline(context, bounded=bounded) as clock:
                async with clock:
                    await self.slots.take(context)
                    with self._begun(frees=frees):
                        return await behaviour(request, context)

        return call

    @contextmanager
    def _default_deadline(self, context: Context, *, bounded: bool = True) -> Iterator[asyncio.Timeout]:
        """For a call that may wait, if it has none of its own; around the timeout that this gives."""
        limit = self._default_timeout_s if bounded and context.time_remaining() is None else None
        clock = asyncio.timeout(limit)
        try:
            yield clock
        except TimeoutError:
            if not clock.expired():
                raise  # the agent's own
            raise errors.DeadlineExceeded(
                f"the call came without a deadline and took more than {limit:g}s, this agent's default"
            ) from None

    @contextmanager
    def _counted(self, context: Context, entry: Entry) -> Iterator[None]:
        if self._drains:
            raise _draining()
        entry.came(held=True)
        task = asyncio.current_task()
        assert task is not None
        calls.enter(context.invocation_metadata(), context.time_remaining())
        self._calls[task] = context
        # The last that the task does is to send the call's status.
        task.add_done_callback(self._calls.pop)
        try:
            yield
        finally:
            entry.leave()
            self._vitals.requests_processed += 1

    @contextmanager
    def _begun(self, *, frees: bool) -> Iterator[None]:
        """Around a handler, which has its slot.

        What it was told of a call of its own must not be said of the call that it handles: this one was begun.
        """
        try:
            yield
        except errors.AgentError as error:
            if (told := of_its_handler(error)) is error:
                raise
            raise told from error
        finally:
            if not frees:
                self.slots.free()


def of_its_handler(error: errors.AgentError) -> errors.AgentError:
    """What a handler raised, as it is to be said of the call, or the message, that it handled."""
    if error.begun and error.reason not in _OF_ONE_CALL:
        return error
    metadata = {**error.metadata, "cause": error.reason}
    return errors.Unavailable(f"the agent's own call failed: {error.message}", metadata=metadata)


def _answered(behaviour: Any, entry: Entry) -> Any:
    """The behaviour of health's, once the request is here."""

    async def call(request: Any, context: Context) -> Any:
        entry.came(held=False)
        return await behaviour(request, context)

    return call


def _refusal(error: errors.AgentError) -> Any:
    """A handler that reads nothing of the request."""

    async def refuse(_requests: Any, _context: Context) -> AsyncIterator[Any]:
        raise error
        yield  # makes it a generator, as its kind of method must be

    return grpc.stream_stream_rpc_method_handler(refuse)


async def _all(calls: list[asyncio.Task[Any]]) -> bool:
    """Returns when all have ended, however."""
    return not (await asyncio.wait(calls))[1]


def _draining() -> errors.WorkerDraining:
    return errors.WorkerDraining("the worker is about to end and has not begun this call; repeat it")


async def _cut(context: Context, why: errors.AgentError) -> None:
    try:
        await interceptors.abort(context, why, "")
    except aio.AbortError:
        return  # as an abort does
    except Exception as error:
        _log.debug("a call ended by itself while it was cut", error=repr(error))
