"""The doors to an agent's conversations, each opened with the client that its users have."""

import json
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

import httpx
import openai
from a2a.client import Client as A2AClient
from a2a.client import ClientConfig, create_client
from a2a.types import a2a_pb2 as a2a
from agentruntime import errors
from agentruntime.client import AsyncClient
from grpc import aio

from tests.integration.conftest import Platform

AGENT = "parrot"
DOORS = ("grpc", "http", "curl", "openai", "chat", "a2a-jsonrpc", "a2a-rest", "a2a-grpc")
_BINDINGS = {"a2a-jsonrpc": "JSONRPC", "a2a-rest": "HTTP+JSON", "a2a-grpc": "GRPC"}
_TIMEOUT_S = 60.0


class Refused(Exception):
    """A message failed; its text is what the door says of it."""


class Door(Protocol):
    """One way in. Both raise Refused."""

    async def say(self, conversation: str, text: str) -> str:
        """The whole reply."""

    async def stream(self, conversation: str, text: str) -> list[str]:
        """The pieces of the reply, as they came."""


class Grpc:
    """The SDK's client."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def say(self, conversation: str, text: str) -> str:
        return "".join(await self.stream(conversation, text))

    async def stream(self, conversation: str, text: str) -> list[str]:
        try:
            handle = await self._client.conversation(AGENT, conversation).send(text, timeout_s=_TIMEOUT_S)
            pieces = [event.chunk.text async for event in handle.watch_updates() if event.HasField("chunk")]
            assert (await handle.get_response()).text == "".join(pieces)
        except errors.AgentError as error:
            raise Refused(f"{error.reason} {error.message}") from error
        return pieces


class Http:
    """`POST /agents/parrot/run`."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def say(self, conversation: str, text: str) -> str:
        answer = await self._client.post(f"/agents/{AGENT}/run", json=_run(conversation, text))
        if answer.is_error:
            raise Refused(answer.text)
        said = answer.json()
        assert (said["status"], said["conversation_id"]) == ("completed", conversation)
        [message] = said["messages"]
        assert message["role"] == "assistant"
        return str(message["content"])

    async def stream(self, conversation: str, text: str) -> list[str]:
        async with self._client.stream(
            "POST", f"/agents/{AGENT}/run", json=_run(conversation, text, stream=True)
        ) as answer:
            return _pieces([line async for line in answer.aiter_lines()])


class Curl(Http):
    """The same, streams by curl."""

    def __init__(self, client: httpx.AsyncClient, url: str, key: str) -> None:
        super().__init__(client)
        self._url = url
        self._credential = ["-H", f"authorization: Bearer {key}"] if key else []

    async def stream(self, conversation: str, text: str) -> list[str]:
        command = ["curl", "-sN", "--max-time", "60", f"{self._url}/agents/{AGENT}/run", "-H"]
        command += ["content-type: application/json", "-d", json.dumps(_run(conversation, text, stream=True))]
        command += self._credential
        return _pieces(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())


def _run(conversation: str, text: str, **more: object) -> dict[str, object]:
    return {"conversation_id": conversation, "messages": [{"role": "user", "content": text}], **more}


def _pieces(lines: list[str]) -> list[str]:
    """Of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), as we send them."""
    kind, pieces = "", []
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data" and kind == "chunk":
            pieces.append(json.loads(value)["chunk"]["text"])
        elif name == "data" and kind in ("failure", "error"):
            raise Refused(value)
    assert kind == "completion"
    return pieces


class Responses:
    """`/v1/responses`, with OpenAI's own client."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client

    async def say(self, conversation: str, text: str) -> str:
        try:
            answer = await self._client.responses.create(model=AGENT, input=text, conversation=conversation)
        except openai.APIError as error:
            raise Refused(str(error)) from error
        if answer.error is not None:
            raise Refused(str(answer.error))
        return answer.output_text

    async def stream(self, conversation: str, text: str) -> list[str]:
        pieces = []
        try:
            async with self._client.responses.stream(model=AGENT, input=text, conversation=conversation) as events:
                async for event in events:
                    if event.type == "response.output_text.delta":
                        pieces.append(event.delta)
                    elif event.type == "response.failed":
                        raise Refused(str(event.response.error))
        except openai.APIError as error:
            raise Refused(str(error)) from error
        return pieces


class Chat:
    """`/v1/chat/completions`, likewise."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client

    async def say(self, conversation: str, text: str) -> str:
        try:
            answer = await self._client.chat.completions.create(
                model=AGENT,
                messages=[{"role": "user", "content": text}],
                extra_headers={"x-uapi-conversation": conversation},
            )
        except openai.APIError as error:
            raise Refused(str(error)) from error
        return answer.choices[0].message.content or ""

    async def stream(self, conversation: str, text: str) -> list[str]:
        try:
            events = await self._client.chat.completions.create(
                model=AGENT,
                messages=[{"role": "user", "content": text}],
                extra_headers={"x-uapi-conversation": conversation},
                stream=True,
            )
            return [piece async for event in events for choice in event.choices if (piece := choice.delta.content)]
        except openai.APIError as error:
            raise Refused(str(error)) from error


class A2A:
    """A2A 1.0, with its SDK's client."""

    def __init__(self, whole: A2AClient, streaming: A2AClient) -> None:
        self._whole = whole
        self._streaming = streaming

    async def say(self, conversation: str, text: str) -> str:
        [answer] = [event async for event in self._whole.send_message(_a2a(conversation, text))]
        task = answer.task
        if task.status.state == a2a.TASK_STATE_FAILED:
            raise Refused(str(task.status.message))
        assert task.context_id == conversation
        return "".join(part.text for artifact in task.artifacts for part in artifact.parts)

    async def stream(self, conversation: str, text: str) -> list[str]:
        pieces = []
        async for event in self._streaming.send_message(_a2a(conversation, text)):
            pieces += [part.text for part in event.artifact_update.artifact.parts if part.text]
            if event.status_update.status.state == a2a.TASK_STATE_FAILED:
                raise Refused(str(event.status_update.status.message))
        return pieces


def _a2a(conversation: str, text: str) -> a2a.SendMessageRequest:
    message = a2a.Message(
        role=a2a.ROLE_USER, parts=[a2a.Part(text=text)], context_id=conversation, message_id=uuid.uuid4().hex
    )
    return a2a.SendMessageRequest(message=message)


@asynccontextmanager
async def opened(name: str, platform: Platform, key: str = "") -> AsyncIterator[Door]:
    """The door of that name, for a caller with a key, or without a credential; "a2a-grpc" without one only."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=platform.http_address,
                timeout=_TIMEOUT_S,
                headers={"authorization": f"Bearer {key}"} if key else {},
            )
        )
        if name == "grpc":
            yield Grpc(await stack.enter_async_context(AsyncClient(platform.grpc_address, token=key)))
        elif name == "http":
            yield Http(http)
        elif name == "curl":
            yield Curl(http, platform.http_address, key)
        elif name in ("openai", "chat"):
            client = openai.AsyncOpenAI(base_url=f"{platform.http_address}/v1", api_key=key or "none", max_retries=0)
            stack.push_async_callback(client.close)
            yield Responses(client) if name == "openai" else Chat(client)
        else:
            whole, streaming = [
                await _a2a_client(stack, http, platform, name, streaming) for streaming in (False, True)
            ]
            yield A2A(whole, streaming)


async def _a2a_client(
    stack: AsyncExitStack, http: httpx.AsyncClient, platform: Platform, name: str, streaming: bool
) -> A2AClient:
    def channel(url: str) -> aio.Channel:
        made = aio.insecure_channel(url)
        stack.push_async_callback(made.close)
        return made

    config = ClientConfig(
        httpx_client=http,
        streaming=streaming,
        supported_protocol_bindings=[_BINDINGS[name]],
        grpc_channel_factory=channel,
    )
    return await create_client(f"{platform.http_address}/agents/{AGENT}", config)
