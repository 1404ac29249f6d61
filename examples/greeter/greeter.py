"""An agent with a proto of its own: it implements the servicer that grpcio-tools generated."""

from collections.abc import AsyncIterator
from typing import Any

import greeter_pb2
import greeter_pb2_grpc
from agentruntime import errors


class GreeterAgent(greeter_pb2_grpc.GreeterServicer):
    async def Greet(self, request: Any, context: Any) -> greeter_pb2.GreetResponse:
        if not request.name:
            raise errors.InvalidArgument("name must not be empty")
        return greeter_pb2.GreetResponse(text=f"Hello, {request.name}!")

    async def GreetEach(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield greeter_pb2.GreetEachResponse(text=f"Hello, {request.name}!")
