"""The gRPC server of a worker: the agent's services, health and reflection, at one address."""

import asyncio
import inspect
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agentruntime.intake import LONGEST_MESSAGE_BYTES
from agentruntime.interceptors import ServerInterceptor
from agentruntime.launch import LAG_KEY, WorkerSpec
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agent_worker.admission import Admission
from agent_worker.lag import LagSelector
from agent_worker.loader import LoadedAgent
from agent_worker.vitals import Vitals

if TYPE_CHECKING:
    from agent_worker.conversations.mailboxes import Mailboxes

# How long pieces of text are gathered where throughput counts more than latency.
_GATHER_S = 0.02
# grpc/impl/compression_types.h
_COMPRESSION_LOW = 1
# For the author's stop().
_STOP_TIMEOUT_S = 10.0


class WorkerServer:
    """Serves one instance of an agent.

    Made within the event loop that it will serve in, and before the agent is known: making it costs what starting
    grpc's core costs.
    """

    def __init__(self, spec: WorkerSpec, lag: LagSelector) -> None:
        """Of a worker; which one it is does not matter yet. `lag` is of the event loop."""
        self._spec = spec
        self._vitals = Vitals()
        # Plain handlers, and asyncio.to_thread, run here; threads start as they are needed.
        self._threads = ThreadPoolExecutor(max_workers=spec.concurrency, thread_name_prefix="agent")
        self._admission = Admission(
            self._vitals,
            self._threads,
            concurrency=spec.concurrency,
            queue=spec.queue,
            default_timeout_s=spec.default_timeout_s,
            held_bytes=spec.held_bytes,
        )
        self._health = _Health(lag)
        self._server = aio.server(interceptors=[ServerInterceptor(), self._admission], options=_options(spec))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._agent: Any = None
        self._conversations: Mailboxes | None = None

    async def start(self, loaded: LoadedAgent, address: str, worker_id: str, event_log: str = "") -> None:
        """Instantiates the agent, lets it start, and serves.

        Args:
            loaded: the agent.
            address: where, "unix:/path" or "host:port".
            worker_id: this worker's; the spec that it was made with may be of any.
            event_log: the path of the log's socket; "" where there is none.

        Raises:
            Exception: whatever the agent's constructor or start() raises.
        """
        asyncio.get_running_loop().set_default_executor(self._threads)
        self._agent = loaded.cls()
        await _call_if_defined(self._agent, "start")
        for add_servicer in loaded.add_servicers:
            add_servicer(self._agent, self._server)
        if loaded.generates_text:
            # The loader has imported it, for agents that generate text and only for them.
            from agent_worker import text_generation  # noqa: PLC0415 — as said above

            gather_s = _GATHER_S if self._spec.optimize_throughput else 0.0
            text_generation.add_to(self._server, self._agent, self._vitals, gather_s=gather_s)
        if loaded.holds_conversations:
            from agent_worker.conversations import serving  # noqa: PLC0415 — as above

            self._conversations = serving.add_to(
                self._server, self._agent, replace(self._spec, worker_id=worker_id), self._admission.slots, event_log
            )
        for name in ("", *loaded.services):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        names = (*loaded.services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._server.add_insecure_port(address)
        await self._server.start()
        self._vitals.begin()

    async def drain(self, grace_s: float, over: asyncio.Event) -> None:
        """Takes no new calls, lets those in flight finish for `grace_s` seconds, then ends them UNAVAILABLE.

        So it does once `over` is set.

        The server itself is not stopped, the process's end does that: grpc ends calls that come while it stops as
        CANCELLED, and a caller could not tell whether they were begun.

        Raises:
            Exception: whatever the agent's stop() raises; TimeoutError if it takes too long. No call is left then.
        """
        await self._health.enter_graceful_shutdown()
        drains = [self._admission.drain(grace_s, over)]
        if self._conversations is not None:
            drains.append(self._conversations.drain(grace_s, over))
        await asyncio.gather(*drains)
        if self._conversations is not None:
            self._conversations.close()
        # In a thread of its own: calls that hang may occupy all the others.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, thread_name_prefix="stop"))
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await _call_if_defined(self._agent, "stop")


class _Health(health.aio.HealthServicer):
    """The standard service, which also says for how long the event loop was blocked since it was last asked."""

    def __init__(self, lag: LagSelector) -> None:
        super().__init__()
        self._lag = lag

    async def Check(self, request: Any, context: Any) -> Any:
        context.set_trailing_metadata(((LAG_KEY, str(round(1000 * self._lag.take()))),))
        return await super().Check(request, context)


def _options(spec: WorkerSpec) -> list[tuple[str, int]]:
    """https://grpc.github.io/grpc/core/group__grpc__arg__keys.html"""
    options = [
        ("grpc.max_receive_message_length", LONGEST_MESSAGE_BYTES),
        ("grpc.max_send_message_length", LONGEST_MESSAGE_BYTES),
        ("grpc.so_reuseport", 0),
    ]
    if spec.compression == "gzip":
        # A level, not an algorithm: it is applied by what the caller accepts, and its lowest is gzip.
        options.append(("grpc.default_compression_level", _COMPRESSION_LOW))
    return options


async def _call_if_defined(agent: Any, name: str) -> None:
    """Calls the author's start() or stop(), in a thread where it is a plain function."""
    method = getattr(agent, name, None)
    if not callable(method):
        return
    if inspect.iscoroutinefunction(method):
        await method()
    else:
        await asyncio.to_thread(method)
