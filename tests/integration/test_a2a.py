"""A2A on a whole platform: its SDK's own client, found by an agent's card, in each way that it can be called."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from a2a.client import Client, ClientConfig, create_client
from a2a.types import a2a_pb2 as a2a
from a2a.utils.errors import TaskNotFoundError, UnsupportedOperationError
from agentruntime import Client as Platforms
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import conversation_service_pb2_grpc
from grpc import aio

from tests.integration.conftest import ROOT, Platform

# The first to use the platform also waits for it.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
BINDINGS = ("JSONRPC", "HTTP+JSON", "GRPC")
_MANIFEST = "name: speaker\nversion: 1.0.0\nentrypoint: speaker:Speaker\n"
_CODE = """
from agentruntime import Agent

class Speaker(Agent):
    async def on_message(self, message, ctx):
        said = [each.text for each in await ctx.history() if each.role == "user"]
        yield f"{len(said) + 1}: "
        if message.text == "wait":
            await ctx.cancelled.wait()
        yield message.text
"""


@pytest.fixture(scope="module")
def speaker(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    project: Path = tmp_path_factory.mktemp("speaker")
    (project / "agent.yaml").write_text(_MANIFEST)
    (project / "speaker.py").write_text(_CODE)
    platform.agent("build", str(project))
    platform.agent("run", "speaker:1.0.0", "--native")
    yield platform
    platform.agent("stop", "speaker")


@pytest_asyncio.fixture
async def closing() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def client(platform: Platform, closing: AsyncExitStack, binding: str) -> Client:
    def channel(url: str) -> aio.Channel:
        made = aio.insecure_channel(url)
        closing.push_async_callback(made.close)
        return made

    http = await closing.enter_async_context(httpx.AsyncClient(timeout=60))
    config = ClientConfig(httpx_client=http, supported_protocol_bindings=[binding], grpc_channel_factory=channel)
    return await create_client(f"{platform.http_address}/agents/speaker", config)


def said(text: str, message_id: str, context_id: str) -> a2a.SendMessageRequest:
    parts = [a2a.Part(text=text)]
    return a2a.SendMessageRequest(
        message=a2a.Message(role=a2a.ROLE_USER, message_id=message_id, context_id=context_id, parts=parts)
    )


def reply_of(task: a2a.Task) -> str:
    return "".join(part.text for artifact in task.artifacts for part in artifact.parts)


@pytest.mark.parametrize("binding", BINDINGS)
async def test_a_conversation_by_the_sdks_client(speaker: Platform, closing: AsyncExitStack, binding: str) -> None:
    context = f"talk {binding}"
    speaking = await client(speaker, closing, binding)
    responses = [response async for response in speaking.send_message(said("Hello", "one", context))]
    assert responses[0].task.context_id == context
    pieces = [part.text for r in responses for part in r.artifact_update.artifact.parts]
    assert "".join(pieces) == "1: Hello"
    assert responses[-1].status_update.status.state == a2a.TASK_STATE_COMPLETED
    task = await speaking.get_task(a2a.GetTaskRequest(id=responses[0].task.id))
    assert reply_of(task) == "1: Hello"
    # Repeated by its id it is the same message.
    again = [response async for response in speaking.send_message(said("Hello", "one", context))]
    assert again[0].task.id == task.id
    # The second one runs until it is canceled, and goes on when nobody hears it.
    stream: Any = speaking.send_message(said("wait", "two", context))
    async with aclosing(stream) as updates:
        async for update in updates:
            if update.HasField("task"):
                waiting = update.task.id
            if update.HasField("artifact_update"):
                break
    later: Any = speaking.subscribe(a2a.SubscribeToTaskRequest(id=waiting))
    async with aclosing(later) as updates:
        first = (await anext(updates)).task
        assert (first.status.state, reply_of(first)) == (a2a.TASK_STATE_WORKING, "2: ")
        canceled = await speaking.cancel_task(a2a.CancelTaskRequest(id=waiting))
        assert canceled.status.state == a2a.TASK_STATE_CANCELED
        rest = [update async for update in updates]
    assert rest[-1].status_update.status.state == a2a.TASK_STATE_CANCELED
    with pytest.raises(UnsupportedOperationError):
        await anext(speaking.subscribe(a2a.SubscribeToTaskRequest(id=waiting)))
    listed = await speaking.list_tasks(a2a.ListTasksRequest(context_id=context))
    assert [each.id for each in listed.tasks] == [waiting, task.id]
    with pytest.raises(TaskNotFoundError):
        await speaking.get_task(a2a.GetTaskRequest(id="nothing"))


async def test_a_question_from_another_door_is_a_task(speaker: Platform, closing: AsyncExitStack) -> None:
    with Platforms(speaker.grpc_address) as platforms:
        make = conversation_service_pb2_grpc.ConversationServiceStub
        stub: Any = platforms.stub(make, agent="speaker")
        message = proto.ChatMessage(parts=[proto.Part(text="Hello")])
        request = proto.SendMessageRequest(conversation_id="other door", message_id="m", message=message)
        stub.SendMessage(request, timeout=60, metadata=(("x-uapi-conversation", "other door"),))
    speaking = await client(speaker, closing, "JSONRPC")
    [task] = (await speaking.list_tasks(a2a.ListTasksRequest(context_id="other door", include_artifacts=True))).tasks
    assert reply_of(task) == "1: Hello"


def test_the_pages_example(speaker: Platform) -> None:
    page = (ROOT / "docs" / "a2a.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    code = code.replace("http://localhost:8080/agents/helper", f"{speaker.http_address}/agents/speaker")
    environment = {**os.environ, "UAPI_AUTH_TOKEN": speaker.home.token()}
    argv = [sys.executable, "-c", code]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True, env=environment)
    assert ran.stdout == "1: Hi"


def test_curl_as_the_page_says(speaker: Platform) -> None:
    message = {"messageId": "q1", "contextId": "curl", "role": "ROLE_USER", "parts": [{"text": "Hi"}]}
    base = f"{speaker.http_address}/agents/speaker/a2a"
    asked = ["curl", "-sSN", "--max-time", "60", "-H", "A2A-Version: 1.0", "-H", "Content-Type: application/json"]
    sent = subprocess.run(
        [*asked, f"{base}/message:stream", "-d", json.dumps({"message": message})],
        capture_output=True, text=True, timeout=90, check=True,
    ).stdout  # fmt: skip
    events = [json.loads(line.removeprefix("data: ")) for line in sent.splitlines() if line.startswith("data: ")]
    assert events[0]["task"]["id"] == "curl.q1"
    assert events[-1]["statusUpdate"]["status"]["state"] == "TASK_STATE_COMPLETED"
    got = subprocess.run(
        [*asked, f"{base}/tasks/curl.q1"], capture_output=True, text=True, timeout=90, check=True
    ).stdout
    assert json.loads(got)["artifacts"][0]["parts"] == [{"text": "1: Hi"}]
