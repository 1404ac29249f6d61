"""A gRPC server for the gateway's tests: it serves TextGenerationService on an address until it is killed.

`python -m tests.uapi_gateway.echo_service ADDRESS NAME` prints "ready" once it listens.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import text_generation_pb2 as proto
from agentruntime._proto.uapi.v1 import text_generation_pb2_grpc
from agentruntime.interceptors import ServerInterceptor
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection import enable_server_reflection

SERVICE = "uapi.v1.TextGenerationService"


class Echo(text_generation_pb2_grpc.TextGenerationServiceServicer):
    """Says who answered, and what came with the call. Some prompts are orders."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def GenerateText(
        self, request: proto.GenerateTextRequest, context: aio.ServicerContext[Any, Any]
    ) -> proto.GenerateTextResponse:
        if request.prompt == "hang":
            await asyncio.sleep(3600)
        if request.prompt == "headers":
            told = sorted(context.invocation_metadata() or ())
            return proto.GenerateTextResponse(text="\n".join(f"{k}: {v!r}" for k, v in told))
        if request.prompt == "deadline":
            return proto.GenerateTextResponse(text=f"{context.time_remaining()}")
        if request.prompt == f"not {self.name}":
            raise errors.WorkerDraining("no more calls")
        if request.prompt == "fail":
            raise errors.InsufficientResources("no room", metadata={"free": "0"})
        if request.prompt in (f"drained {self.name}", "drained all"):
            raise errors.WorkerDraining("not begun")
        if request.prompt == "begun":
            context.set_trailing_metadata(((status.NOT_BEGUN_KEY, "1"),))
            return proto.GenerateTextResponse(text="begun")
        if request.prompt == "break":
            raise errors.Unavailable("broken")
        if request.prompt.startswith("wait "):
            # Answers in one piece, as most do: what was begun and is cut cannot be repeated by anyone.
            await asyncio.sleep(float(request.prompt.split()[1]))
            return proto.GenerateTextResponse(text=f"{self.name}: {request.prompt}")
        await context.send_initial_metadata((("x-answered-by", self.name),))
        context.set_trailing_metadata((("x-trailer", "kept"), ("x-blob-bin", b"\x00\xff")))
        return proto.GenerateTextResponse(text=f"{self.name}: {request.prompt}", tokens_used=1)

    async def StreamText(
        self, request: proto.StreamTextRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[proto.StreamTextResponse]:
        for word in request.prompt.split():
            yield proto.StreamTextResponse(text=word)
            if request.temperature:
                await asyncio.sleep(request.temperature)

    async def chat(
        self, requests: AsyncIterator[bytes], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        """A method of nobody's proto, streaming both ways."""
        metadata = dict(context.invocation_metadata() or ())
        if metadata.get("x-refused-by") == self.name:
            raise errors.WorkerDraining("not begun")
        if "x-greeted" in metadata:
            await context.send_initial_metadata((("x-answered-by", self.name),))
        async for request in requests:
            yield b"echo " + request

    async def GetHealth(
        self, request: proto.HealthRequest, context: aio.ServicerContext[Any, Any]
    ) -> proto.HealthResponse:
        return proto.HealthResponse(status="healthy")


class Health(health_pb2_grpc.HealthServicer):
    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


@contextlib.asynccontextmanager
async def echoing(address: str, name: str, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[int]:
    """A server in this process; yields its port, 0 for a Unix socket's."""
    server, port = await _start(address, name, credentials)
    try:
        yield port
    finally:
        await server.stop(0)


async def _start(
    address: str, name: str, credentials: grpc.ServerCredentials | None = None
) -> tuple[aio.Server, int]:
    server = aio.server(interceptors=[ServerInterceptor()])
    echo = Echo(name)
    text_generation_pb2_grpc.add_TextGenerationServiceServicer_to_server(echo, server)
    health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
    enable_server_reflection([SERVICE], server)
    chats = grpc.method_handlers_generic_handler(
        "acme.v1.Chatter", {"Chat": grpc.stream_stream_rpc_method_handler(echo.chat)}
    )
    server.add_generic_rpc_handlers((chats,))
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    return server, port


async def _main(address: str, name: str) -> None:
    server, _ = await _start(address, name)
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
