"""`Client`: what a caller uses."""

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

import agentruntime
from agentruntime import errors
from agentruntime._proto.uapi.v1 import (
    agent_gateway_pb2_grpc,
    agent_pool_pb2_grpc,
    agent_registry_pb2_grpc,
    image_service_pb2_grpc,
    text_generation_pb2,
    text_generation_pb2_grpc,
)
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_pb2
from agentruntime.client import dynamic, handshake, policy, repeat, target
from agentruntime.client.registration import Lease, register_request

# The standard library's: a library leaves it to its program how logs are written.
_log = logging.getLogger("agentruntime.client")
StubT = TypeVar("StubT")
# For a look at a connection: it is there or it is not.
_LOOK_S = 0.3


class Client:
    """A connection to the gateway. Threads may share it; close it, or use it in a `with` statement.

    Args:
        endpoint: "host:port", "unix:/path", "https://host:port" or, unencrypted, "http://host:port". By default
            `UAPI_ENDPOINT`, else the platform of this user's runtime directory, else localhost:50051.
        token: the caller's credential, or what gives it when called, such as `oauth2.client_credentials(…)`. By
            default `UAPI_AUTH_TOKEN`, else that of `agent login` to this endpoint, else, towards the runtime
            directory's own gateway, that directory's.
        timeout_s: seconds that a call without a timeout of its own may take, streams included (`timeout=math.inf`
            asks for none). By default `UAPI_TIMEOUT`, else 30.
        ca: a file in PEM with the authorities whose certificates are trusted. By default `UAPI_TLS_CA`, else those
            that gRPC brings along, and towards the runtime directory's own gateway that directory's.
        cert, key: files in PEM with a certificate of your own, for a gateway that knows callers by theirs. By default
            `UAPI_TLS_CERT` and `UAPI_TLS_KEY`.

    Every call waits for the gateway within its time, is repeated where that cannot do something twice, and raises the
    classes of `agentruntime.errors`: docs/client.md has the rules.

    Raises:
        InvalidArgument: an argument, or a variable of the environment, cannot be read.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        token: target.TokenSource | None = None,
        timeout_s: float | None = None,
        *,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
    ) -> None:
        files = [str(path) if path else None for path in (ca, cert, key)]
        self._connection = _Connection(
            target.resolve(endpoint, token, timeout_s, ca=files[0], cert=files[1], key=files[2])
        )
        self._agent = ""
        self._leases: dict[str, _LeaseKeeper] = {}

    @property
    def text_generation(self) -> text_generation_pb2_grpc.TextGenerationServiceStub:
        return self.stub(text_generation_pb2_grpc.TextGenerationServiceStub)

    @property
    def registry(self) -> agent_registry_pb2_grpc.AgentRegistryStub:
        return self.stub(agent_registry_pb2_grpc.AgentRegistryStub, agent="")

    @property
    def gateway(self) -> agent_gateway_pb2_grpc.AgentGatewayStub:
        return self.stub(agent_gateway_pb2_grpc.AgentGatewayStub, agent="")

    @property
    def pool(self) -> agent_pool_pb2_grpc.AgentPoolStub:
        return self.stub(agent_pool_pb2_grpc.AgentPoolStub, agent="")

    @property
    def images(self) -> image_service_pb2_grpc.ImageServiceStub:
        return self.stub(image_service_pb2_grpc.ImageServiceStub, agent="")

    def stub(self, stub: Callable[[grpc.Channel], StubT], *, agent: str | None = None) -> StubT:
        """A generated stub, of an agent's own proto too, whose calls go to `agent`.

        Raises:
            InvalidArgument: the agent's name is none.
        """
        return stub(self._connection.channel(self._agent if agent is None else agent))

    def agent(self, name: str) -> "Client":
        """This client with every call bound to one agent or worker; it shares the connection.

        Raises:
            InvalidArgument: the name is none.
        """
        bound = Client.__new__(Client)
        bound._connection = self._connection
        bound._agent = name
        bound._leases = self._leases
        self._connection.channel(name)
        return bound

    def generate_text(
        self,
        agent: str,
        prompt: str,
        *,
        temperature: float = 0.0,
        max_tokens: int = 0,
        timeout_s: float | None = None,
    ) -> text_generation_pb2.GenerateTextResponse:
        """One whole text. `max_tokens=0` leaves the length to the agent."""
        request = text_generation_pb2.GenerateTextRequest(
            prompt=prompt, temperature=temperature, max_tokens=max_tokens
        )
        return self.agent(agent).text_generation.GenerateText(request, timeout=timeout_s)

    def stream_text(
        self,
        agent: str,
        prompt: str,
        *,
        temperature: float = 0.0,
        max_tokens: int = 0,
        timeout_s: float | None = None,
    ) -> Iterator[text_generation_pb2.StreamTextResponse]:
        """The same text in pieces, while it is made: `for piece in …: print(piece.text)`."""
        request = text_generation_pb2.StreamTextRequest(prompt=prompt, temperature=temperature, max_tokens=max_tokens)
        return iter(self.agent(agent).text_generation.StreamText(request, timeout=timeout_s))

    def call_agent(self, agent: str, request: Mapping[str, Any], *, timeout_s: float | None = None) -> dict[str, Any]:
        """Calls a unary method without generated code.

        Args:
            agent: an agent or one of its workers.
            request: `{"service": "TextGenerationService", "method": "GenerateText", "data": {…}}`, the data by the
                field names of the method's request.
            timeout_s: seconds; the client's if None.

        Returns:
            The response by its field names, defaults included.
        """
        message = dynamic.call_request(agent, request)
        return dynamic.call_response(self.gateway.CallAgent(message, timeout=timeout_s))

    def register_agent(
        self, registration_data: Mapping[str, Any], *, lease_ttl_s: float | None = None
    ) -> registry_pb2.AgentInfo:
        """Enters an agent that runs elsewhere, and keeps it registered until `deregister_agent` or `close`.

        A thread renews the lease, and registers again where the gateway has lost it.

        Args:
            registration_data: agent_id, services, endpoint, capabilities and health_check.
            lease_ttl_s: from 1 second to 1 hour; 30 seconds if None.

        Raises:
            InvalidArgument: the data cannot be read.
            FailedPrecondition: the endpoint does not answer.
            AlreadyExists: the pool runs an agent of that name.
        """
        request = register_request(registration_data, lease_ttl_s)
        response = self.registry.RegisterAgent(request)
        lease = Lease(request)
        lease.answered(response)
        if previous := self._leases.pop(lease.agent_id, None):
            previous.stop()
        self._leases[lease.agent_id] = _LeaseKeeper(lease, self.registry)
        return response.agent

    def deregister_agent(self, agent_id: str) -> None:
        """Takes an agent out again, and lets its lease go."""
        if keeper := self._leases.pop(agent_id, None):
            keeper.stop()
        self.registry.DeregisterAgent(registry_pb2.DeregisterAgentRequest(agent_id=agent_id))

    def await_connection(self, timeout_s: float | None = None) -> None:
        """Waits until the gateway is reached; calls do so by themselves, within their own time.

        Args:
            timeout_s: seconds; the client's if None.

        Raises:
            Unavailable: it is not reached in time (reason NOT_CONNECTED).
        """
        wait_s = self._connection.target.timeout_s if timeout_s is None else timeout_s
        if not self._connection.connected(wait_s, wait=True):
            raise handshake.not_connected(self._connection.target, wait_s)

    @property
    def target(self) -> target.Target:
        """Where it connects."""
        return self._connection.target

    def close(self) -> None:
        """Ends the connection; agents registered here stay until their leases run out."""
        while self._leases:
            self._leases.popitem()[1].stop()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _LeaseKeeper:
    """A thread that keeps one lease alive."""

    def __init__(self, lease: Lease, registry: agent_registry_pb2_grpc.AgentRegistryStub) -> None:
        self._lease = lease
        self._registry = registry
        self._stopped = threading.Event()
        # A daemon: a program that ends without close() must not hang for its lease.
        self._thread = threading.Thread(target=self._keep, name=f"lease-{lease.agent_id}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _keep(self) -> None:
        while not self._stopped.wait(self._lease.delay_s):
            request = self._lease.request()
            try:
                # Without waiting for a connection: whoever ends the lease waits for this thread.
                if isinstance(request, registry_pb2.KeepAliveRequest):
                    self._lease.answered(self._registry.KeepAlive(request, timeout=5, wait_for_ready=False))
                else:
                    self._lease.answered(self._registry.RegisterAgent(request, timeout=10, wait_for_ready=False))
            except errors.AgentError as error:
                self._lease.failed(error)
                _log.warning("the lease of %s was not renewed: %s", self._lease.agent_id, error.message)


class _Connection:
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
                interceptor = CallInterceptor(policy.CallPolicy.of(self.target, agent), self)
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


class CallInterceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Applies a `CallPolicy` to every call of a channel, repeats what may be, and raises `agentruntime.errors`."""

    def __init__(self, of: policy.CallPolicy, connection: _Connection) -> None:
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
        self, start: Callable[[], Any], attempts: repeat.Attempts, connection: _Connection, agent: str
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
