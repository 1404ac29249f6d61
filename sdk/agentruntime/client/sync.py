"""`Client`: what a caller uses."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from agentruntime import errors
from agentruntime._proto.uapi.v1 import (
    agent_gateway_pb2_grpc,
    agent_pool_pb2_grpc,
    agent_registry_pb2_grpc,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
    image_service_pb2_grpc,
    text_generation_pb2,
    text_generation_pb2_grpc,
)
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_pb2
from agentruntime.client import dynamic, handshake, target
from agentruntime.client.connection import Connection
from agentruntime.client.conversations import Conversation
from agentruntime.client.registration import Lease, register_request

# The standard library's: a library leaves it to its program how logs are written.
_log = logging.getLogger("agentruntime.client")
StubT = TypeVar("StubT")


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
        self._connection = Connection(
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

    def conversation(self, agent: str, conversation_id: str | None = None) -> Conversation:
        """A conversation with an agent, the one of that id or a new one: `client.conversation("helper").send("Hi")`.

        Args:
            agent: one that has an `on_message`.
            conversation_id: of this caller's own choice, of 1 to 200 printable ASCII characters; made up if None.

        Raises:
            InvalidArgument: the name or the id cannot be one.
        """
        return Conversation(self._connection, agent, conversation_id)

    def conversations(
        self, agent: str | None = None, *, all_principals: bool = False
    ) -> Iterator[conversation_service_pb2.Conversation]:
        """The caller's conversations, with one agent or all, those that changed last first. Wakes no agent.

        Args:
            agent: its name; None for all.
            all_principals: everybody's; for operators.
        """
        stub = self.stub(conversation_service_pb2_grpc.ConversationServiceStub, agent="")
        request = conversation_service_pb2.ListConversationsRequest(agent=agent or "", all_principals=all_principals)
        while True:
            page = stub.ListConversations(request)
            yield from page.conversations
            request.page_token = page.next_page_token
            if not request.page_token:
                return

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
