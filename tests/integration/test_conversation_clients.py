"""Conversations with a real agent: by the SDK, whose streams outlive its worker, and by the `agent` command."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from agentruntime import AsyncClient, Client, errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.conversation import RequestStatus

from tests.integration.conftest import TIMEOUT_S, Platform
from tests.waiting import until

# The first to use the platform also waits for it.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
SOURCE = """
from agentruntime import Agent


class Talker(Agent):
    async def on_message(self, message, ctx):
        said = len(await ctx.history())
        for word in message.text.split():
            yield f"{word} "
            if word == "hold" and ctx.attempt == 1:
                await ctx.cancelled.wait()
                return
        yield f"after {said}"
"""


@pytest.fixture(scope="module")
def talker(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An agent that repeats words, and holds at `hold` when it meets it first."""
    project = tmp_path_factory.mktemp("talker")
    (project / "agent.yaml").write_text("name: talker\nversion: 0.1.0\nentrypoint: agent:Talker\n")
    (project / "agent.py").write_text(SOURCE)
    platform.agent("build", str(project), "-t", "talker:1")
    platform.agent("run", "talker:1", "--native")
    yield "talker"
    platform.agent("stop", "talker")


@pytest.fixture
def client(platform: Platform) -> Iterator[Client]:
    with Client(f"unix:{platform.home.gateway_socket}", timeout_s=TIMEOUT_S) as made:
        yield made


def kill_worker(platform: Platform, agent: str) -> None:
    (worker,) = platform.workers(agent)
    process = psutil.Process(worker["pid"])
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)


def contents(events: list[proto.Event]) -> list[str]:
    return [event.chunk.text or event.WhichOneof("content") or "" for event in events]


def test_a_stream_outlives_the_worker(platform: Platform, client: Client, talker: str) -> None:
    conversation = client.conversation(talker, "survives")
    assert conversation.send("hi there").get_response().text == "hi there after 0"
    handle = conversation.send("a hold b", message_id="m-2")
    updates = handle.watch_updates()
    seen = [next(updates) for _ in range(4)]
    assert contents(seen) == ["message", "attempt", "a ", "hold "]
    kill_worker(platform, talker)
    seen += updates
    assert contents(seen)[4:] == ["attempt", "a ", "hold ", "b ", "after 2", "completion"]
    sequences = [event.sequence for event in seen]
    assert sequences == sorted(set(sequences))
    assert [event.sequence for event in conversation.watch() if event.message_id == "m-2"] == sequences
    assert handle.get_response().text == "a hold b after 2"
    # The same message once more does nothing.
    assert conversation.send("a hold b", message_id="m-2").get_response().text == "a hold b after 2"
    assert conversation.get().last_sequence == sequences[-1]


async def test_cancelled_asynchronously(platform: Platform, talker: str) -> None:
    async with AsyncClient(f"unix:{platform.home.gateway_socket}", timeout_s=TIMEOUT_S) as client:
        conversation = client.conversation(talker, "cancelled")
        held = await conversation.send("hold")
        waits = await conversation.send("next")
        assert await held.status() is RequestStatus.RUNNING
        assert await held.cancel() is RequestStatus.RUNNING
        with pytest.raises(errors.Cancelled):
            await held.get_response()
        assert (await waits.get_response()).text.startswith("next ")
        with pytest.raises(errors.ConversationNotFound):
            await client.conversation(talker, "never").get()
        with pytest.raises(errors.NoConversations, match="on_message"):
            await client.conversation("echo").send("hi")


def test_the_command(platform: Platform, talker: str, tmp_path: Path) -> None:
    chat = ("chat", talker, "--conversation", "terminal", "--message")
    assert platform.agent(*chat, "hello").stdout == "hello after 0\n"
    events = [json.loads(line) for line in platform.agent(*chat, "x", "-o", "json").stdout.splitlines()]
    assert [event["sequence"] for event in events] == list(range(events[0]["sequence"], events[-1]["sequence"] + 1))
    # What is kept wakes nobody.
    platform.agent("stop", talker)
    (listed,) = [
        each for each in platform.json("conversations", "list", talker) if each["conversation_id"] == "terminal"
    ]
    assert (listed["agent"], listed["last_sequence"]) == (talker, events[-1]["sequence"])
    shown = platform.agent("conversations", "show", talker, "terminal").stdout
    assert [line.partition("  ")[2] for line in shown.splitlines()[1:3]] == [
        "user: hello",
        "assistant: hello after 0",
    ]
    exported = tmp_path / "terminal.jsonl"
    platform.agent("conversations", "export", talker, "terminal", "-o", str(exported))
    assert [json.loads(line)["sequence"] for line in exported.read_text().splitlines()] == list(
        range(1, events[-1]["sequence"] + 1)
    )
    platform.agent("conversations", "delete", talker, "terminal", "--yes")
    platform.agent("conversations", "show", talker, "terminal", code=15)
    assert until(lambda: platform.workers(talker) == [])
    platform.agent("run", "talker:1", "--native")
    assert platform.agent(*chat, "anew").stdout == "anew after 0\n"
