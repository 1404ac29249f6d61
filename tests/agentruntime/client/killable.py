"""A gateway and its agent in one process, to be killed: `python -m tests.agentruntime.client.killable ADDRESS FILE`.

Each call appends its id to the file before its effect, so that what ran twice can be counted there.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
from agentruntime._proto.uapi.v1 import agent_gateway_pb2 as gateway_pb2
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_pb2
from agentruntime._proto.uapi.v1 import text_generation_pb2 as text_pb2

_WORK_S = 0.02


class Agent:
    """Methods that are declared idempotent, and one that is not: `CallAgent`."""

    def __init__(self, file: str) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def _work(self, call_id: str) -> None:
        os.write(self._file, f"{call_id}\n".encode())
        await asyncio.sleep(_WORK_S)

    async def generate(self, request: Any, context: Any) -> text_pb2.GenerateTextResponse:
        await self._work(request.prompt)
        return text_pb2.GenerateTextResponse(text=request.prompt)

    async def stream(self, request: Any, context: Any) -> AsyncIterator[text_pb2.StreamTextResponse]:
        await self._work(request.prompt)
        for _ in range(50):
            yield text_pb2.StreamTextResponse(text=request.prompt)
            await asyncio.sleep(_WORK_S)

    async def call(self, request: Any, context: Any) -> gateway_pb2.CallAgentResponse:
        await self._work(request.agent_id)
        return gateway_pb2.CallAgentResponse()

    async def describe(self, request: Any, context: Any) -> registry_pb2.GetAgentResponse:
        agent = registry_pb2.AgentInfo(agent_id=request.agent_id, idempotent=request.agent_id != "once")
        return registry_pb2.GetAgentResponse(agent=agent)


def _unary(behaviour: Any, request: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(behaviour, request.FromString, lambda made: made.SerializeToString())


async def _main(address: str, file: str) -> None:
    agent = Agent(file)
    stream = grpc.unary_stream_rpc_method_handler(
        agent.stream, text_pb2.StreamTextRequest.FromString, text_pb2.StreamTextResponse.SerializeToString
    )
    generate = _unary(agent.generate, text_pb2.GenerateTextRequest)
    services = {
        "uapi.v1.TextGenerationService": {"GenerateText": generate, "StreamText": stream},
        "uapi.v1.AgentGateway": {"CallAgent": _unary(agent.call, gateway_pb2.CallAgentRequest)},
        "uapi.v1.AgentRegistry": {"GetAgent": _unary(agent.describe, registry_pb2.GetAgentRequest)},
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items())
    )
    server.add_insecure_port(address)
    await server.start()
    print("serves", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
