"""A worker's server with an author's agent and the stand-in of the log, and its caller's stub."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentruntime import status
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import conversation_service_pb2_grpc
from agentruntime.agent import Agent
from agentruntime.conversation import ChatMessage
from agentruntime.launch import ConversationSpec, WorkerSpec
from grpc import aio

from agent_worker.lag import LagSelector
from agent_worker.loader import CONVERSATIONS, LoadedAgent
from agent_worker.server import WorkerServer
from tests.agent_worker.conversations.log_server import LogServer, log_server

WHO = "key:alice"


@dataclass
class Worker:
    """One, which serves."""

    server: WorkerServer
    channel: aio.Channel
    stub: Any

    async def send(
        self, text: str, conversation: str = "c", message: str = "", **fields: Any
    ) -> proto.SendMessageResponse:
        request = proto.SendMessageRequest(
            conversation_id=conversation, message_id=message, message=ChatMessage.of(text).to_proto(), **fields
        )
        response: proto.SendMessageResponse = await called(
            self.stub.SendMessage(request, timeout=20, metadata=caller())
        )
        return response

    def stream(self, text: str, conversation: str = "c", message: str = "", **fields: Any) -> Any:
        request = proto.StreamMessageRequest(
            conversation_id=conversation, message_id=message, message=ChatMessage.of(text).to_proto(), **fields
        )
        return self.stub.StreamMessage(request, timeout=20, metadata=caller())

    async def events(self, text: str, conversation: str = "c", message: str = "", **fields: Any) -> list[proto.Event]:
        return [each.event async for each in self.stream(text, conversation, message, **fields)]

    async def watched(self, conversation: str = "c", **fields: Any) -> list[proto.Event]:
        request = proto.WatchConversationRequest(conversation_id=conversation, **fields)
        return [each.event async for each in self.stub.WatchConversation(request, timeout=20, metadata=caller())]


def caller(principal: str = WHO) -> tuple[tuple[str, str], ...]:
    return (("x-uapi-principal", principal),)


async def called(call: Any) -> Any:
    """What a call gives, or the error of ours that it raises."""
    try:
        return await call
    except aio.AioRpcError as error:
        raise status.decode(error) from None


def text(message: proto.ChatMessage) -> str:
    return ChatMessage.of_proto(message).text


def kinds(events: list[proto.Event]) -> list[str]:
    return [str(event.WhichOneof("content")) for event in events]


@asynccontextmanager
async def working(agent: type[Agent], path: Path | str, name: str = "a-01", **settings: Any) -> AsyncIterator[Worker]:
    """A worker; `settings` of the WorkerSpec and of its ConversationSpec."""
    own = {key: settings.pop(key) for key in list(settings) if key in ConversationSpec.__dataclass_fields__}
    # As of a spare, which is made before it is known which worker it will be.
    server = WorkerServer(WorkerSpec("", "a", 1, 1, conversations=ConversationSpec(**own), **settings), LagSelector())
    with tempfile.TemporaryDirectory(prefix="uapi-conv-") as directory:
        await server.start(LoadedAgent(agent, (), (CONVERSATIONS,), b""), f"unix:{directory}/s", name, str(path))
        async with aio.insecure_channel(f"unix:{directory}/s") as channel:
            try:
                yield Worker(server, channel, conversation_service_pb2_grpc.ConversationServiceStub(channel))
            finally:
                assert server._conversations is not None
                server._conversations.close()
                await server._server.stop(0)
                server._threads.shutdown()


@asynccontextmanager
async def serving(agent: type[Agent], tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[Worker, LogServer]]:
    async with log_server(tmp_path / "l") as log, working(agent, log.path, **settings) as worker:
        yield worker, log
