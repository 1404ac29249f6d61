"""The channels of a `Client`, and what each call on them has of deadline, metadata, repetition and errors."""

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

import agentruntime
from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_pb2
from agentruntime._proto.uapi.v1 import agent_registry_pb2_grpc
from agentruntime.client import handshake, policy, repeat, target

# For a look at a connection: it is there or it is not.
_LOOK_S = 0.3


class Connection:
    """Channels to one target, one per agent that calls are bound to. gRPC itself shares their connection."""

    def __init__(self, to: target.Target) -> None:
        self.target = to
        self._channels: dict[str, tuple[grpc.Channel, grpc.Channel]] = {}
        self._lock = threading.Lock()
        self._closed = False

    def channel(self, agent: str) -> grpc.Channel:
        with self._lock:
            if self._closed:
                raise errors.FailedPrecondition("this client is closed; make a new one")
            if agent not in self._channels:
                interceptor = _CallInterceptor(policy.CallPolicy.of(self.target, agent), self)
                options = policy.channel_options(self.target, agentruntime.__version__)
                encrypted = policy.credentials(self.target)
                if encrypted is None:
                    raw = grpc.insecure_channel(self.target.address, options)
                else:
                    raw = grpc.secure_channel(self.target.address, encrypted, options)
                self._channels[agent] = (raw, grpc.intercept_channel(raw, interceptor))
            return self._channels[agent][1]

    def connected(self, within_s: float, *, wait: bool) -> bool:
        """Whether the gateway is reached: now, or with `wait` within so many seconds.

        Seen by a call, whatever its answer: grpc's own way to ask costs a thread, and 0.2 s when the channel closes.
        """
        self.channel("")
        check: Any = self._channels[""][0].unary_unary("/grpc.health.v1.Health/Check")
        try:
            check(b"", timeout=within_s, wait_for_ready=wait)
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            if wait:
                return code is not grpc.StatusCode.DEADLINE_EXCEEDED
            return code is not grpc.StatusCode.UNAVAILABLE or not details.startswith("failed to connect")
        return True

    def may_repeat(self, attempts: repeat.Attempts, agent: str) -> bool:
        """What the registry says of repeating a call that a worker may have seen; False where it says nothing."""
        registry = agent_registry_pb2_grpc.AgentRegistryStub(self.channel(""))
        left_s = attempts.left_s(time.monotonic())
        timeout_s = math.inf if left_s is None else left_s
        try:
            if agent:
                request = registry_pb2.GetAgentRequest(agent_id=agent)
                return bool(registry.GetAgent(request, timeout=timeout_s).agent.idempotent)
            listed = registry.ListAgents(registry_pb2.ListAgentsRequest(), timeout=timeout_s)
        except errors.AgentError:
            return False
        return repeat.may_repeat(listed.agents, attempts.service)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            while self._channels:
                self._channels.popitem()[1][0].close()


class _Details(grpc.ClientCallDetails):
    """A call's details with ours put in: grpc has no way to copy its own."""

    def __init__(self, given: Any, timeout: float | None, metadata: policy.Metadata, wait_for_ready: bool) -> None:
        self.method = given.method
        self.timeout = timeout
        self.metadata = tuple(metadata)
        self.credentials = given.credentials
        self.wait_for_ready = wait_for_ready
        self.compression = getattr(given, "compression", None)


class _CallInterceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Applies a `CallPolicy` to every call of a channel, repeats what may be, and raises `agentruntime.errors`."""

    def __init__(self, of: policy.CallPolicy, connection: Connection) -> None:
        self._policy = of
        self._connection = connection

    def _intercept(self, continuation: Any, details: Any, request: Any, *, streamed: bool = False) -> "_TypedCall":
        waits = getattr(details, "wait_for_ready", None) is not False
        timeout_s = self._policy.deadline_s(details.timeout)
        attempts = repeat.Attempts(details.method, timeout_s, time.monotonic(), repeatable=waits and not streamed)
        metadata = self._policy.metadata(details.metadata)

        def start() -> Any:
            left_s = attempts.left_s(time.monotonic())
            return continuation(_Details(details, left_s, metadata, waits), request)

        return _TypedCall(start, attempts, self._connection, policy.agent_in(metadata))

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        call = self._intercept(continuation, client_call_details, request)
        # A call that was made as a future is under way, and nobody would repeat it before it is asked for.
        if call.done():
            call.settle()
        return call

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._intercept(continuation, client_call_details, request)

    def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return self._intercept(continuation, client_call_details, request_iterator, streamed=True)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return self._intercept(continuation, client_call_details, request_iterator, streamed=True)


class _TypedCall:
    """A call (grpc.Call, grpc.Future and, for streams, an iterator) whose failures are `agentruntime.errors`.

    It is the last of its attempts: a stream is begun anew as long as nothing of it was handed over.
    """

    def __init__(
        self, start: Callable[[], Any], attempts: repeat.Attempts, connection: Connection, agent: str
    ) -> None:
        self._start = start
        self._attempts = attempts
        self._connection = connection
        self._agent = agent
        self._delivered = False
        self._cancelled = threading.Event()
        self._call = start()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while True:
            try:
                message = next(self._call)
            except grpc.RpcError as error:
                typed = self._typed(error)
                if self._delivered or not self._again(typed):
                    raise typed from error
            else:
                self._delivered = True
                return message

    def settle(self) -> None:
        """Repeats a call that is done until it is well, or has failed for good."""
        error = self._call.exception()
        while isinstance(error, grpc.RpcError) and self._again(self._typed(error)):
            error = self._call.exception()

    def result(self, timeout: float | None = None) -> Any:
        try:
            return self._call.result(timeout)
        except grpc.RpcError as error:
            raise self._typed(error) from error

    def exception(self, timeout: float | None = None) -> BaseException | None:
        error: BaseException | None = self._call.exception(timeout)
        return self._typed(error) if isinstance(error, grpc.RpcError) else error

    def cancel(self) -> bool:
        self._cancelled.set()
        return bool(self._call.cancel())

    def _again(self, error: errors.AgentError) -> bool:
        """Makes the call once more, after a while, if it may be.

        Raises:
            Cancelled: the caller cancelled it meanwhile.
        """
        again = self._attempts.again(error, time.monotonic(), random.random())  # noqa: S311 — because nobody gains by guessing it
        if again is None:
            return False
        waited = not self._cancelled.wait(again.delay_s)
        refused = waited and again.ask and not self._connection.may_repeat(self._attempts, self._agent)
        if self._cancelled.is_set():
            raise errors.Cancelled("the caller cancelled the call")
        if refused:
            return False
        try:
            self._call = self._start()
        except ValueError:
            # The client was closed meanwhile.
            return False
        if self._cancelled.is_set():
            # `cancel` may have met the attempt before.
            self._call.cancel()
        return True

    def _typed(self, error: grpc.RpcError) -> errors.AgentError:
        timeout_s, elapsed_s = self._attempts.timeout_s, self._attempts.elapsed_s(time.monotonic())
        typed = policy.failure(error, timeout_s, elapsed_s, self._attempts.failure)
        if timeout_s is None or not isinstance(typed, errors.DeadlineExceeded):
            return typed
        if not self._connection.connected(_LOOK_S, wait=False):
            return handshake.not_connected(self._connection.target, timeout_s)
        return typed
