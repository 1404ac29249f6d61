"""Conversations with workers of a whole platform, which die over them."""

import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from agentruntime import Client, errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import conversation_service_pb2_grpc
from agentruntime.conversation import ChatMessage

from tests.integration.conftest import ROOT, Platform

# The first to use the platform also waits for it.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
_MORTAL = """
import os
from agentruntime import Agent

class Mortal(Agent):
    async def on_message(self, message, ctx):
        dies, _, text = message.text.partition(" ")
        yield f"{ctx.attempt}:"
        if ctx.attempt <= int(dies):
            await ctx.set_state(ctx.attempt)  # what was said before is on disk then
            if text == "variously" and ctx.attempt > 1:
                os._exit(10 * ctx.attempt)
            os.kill(os.getpid(), 11 if text == "variously" else 9)
        yield text
"""


@pytest.fixture(scope="module")
def agents(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """`helper` without a model, and `mortal`, whose messages say how often its workers die over them."""
    helper, mortal = tmp_path_factory.mktemp("helper"), tmp_path_factory.mktemp("mortal")
    shutil.copy(ROOT / "examples" / "helper" / "helper.py", helper)
    (helper / "agent.yaml").write_text("name: helper\nversion: 1.0.0\nentrypoint: helper:Helper\n")
    (mortal / "mortal.py").write_text(_MORTAL)
    (mortal / "agent.yaml").write_text("name: mortal\nversion: 1.0.0\nentrypoint: mortal:Mortal\n")
    try:
        for name, directory in (("helper", helper), ("mortal", mortal)):
            platform.agent("build", str(directory))
            platform.agent("run", f"{name}:1.0.0", "--native")
        yield platform
    finally:
        for name in ("helper", "mortal"):
            platform.agent("stop", name)


class Talk:
    """One conversation with an agent."""

    def __init__(self, platform: Platform, agent: str) -> None:
        self.conversation_id = str(uuid.uuid4())
        self._client = Client(platform.grpc_address)
        make = conversation_service_pb2_grpc.ConversationServiceStub
        self._stub: Any = self._client.stub(make, agent=agent)
        self._where: Any = (("x-uapi-conversation", self.conversation_id),)

    def send(self, text: str) -> list[proto.Event]:
        """The events of a message from its own on, however often its stream breaks."""
        message_id = str(uuid.uuid4())
        request = proto.StreamMessageRequest(
            conversation_id=self.conversation_id, message_id=message_id, message=ChatMessage.of(text).to_proto()
        )
        events: dict[int, proto.Event] = {}
        for _ in range(10):
            try:
                for each in self._stub.StreamMessage(request, timeout=60, metadata=self._where):
                    events[each.event.sequence] = each.event
                break
            except errors.Unavailable:
                continue
        return [events[sequence] for sequence in sorted(events)]

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def talk(agents: Platform, request: pytest.FixtureRequest) -> Iterator[Talk]:
    talk = Talk(agents, request.param)
    yield talk
    talk.close()


def text(event: proto.Event) -> str:
    return ChatMessage.of_proto(event.completion).text


@pytest.mark.parametrize("talk", ["helper"], indirect=True)
def test_a_conversation_remembers(talk: Talk) -> None:
    for number in (1, 2):
        events = talk.send(f"hello {number}")
        said = f"This is message {number}, and I have no model to think with. You said: hello {number}"
        assert text(events[-1]) == said
    assert [event.sequence for event in events][-1] == 12


@pytest.mark.parametrize("talk", ["mortal"], indirect=True)
def test_a_message_outlives_its_worker(agents: Platform, talk: Talk) -> None:
    events = talk.send("1 lived")
    assert text(events[-1]) == "2:lived"
    attempts = [event.attempt for event in events if event.HasField("attempt")]
    assert [each.number for each in attempts] == [1, 2]
    # Also where the worker was a spare before.
    assert all(each.worker_id.startswith("mortal-") for each in attempts), attempts
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    # One that ends three of them is set aside, and the conversation goes on.
    failure = talk.send("9 variously")[-1].failure
    assert failure.reason == "MESSAGE_SET_ASIDE", failure
    # Its own three ends, each with its reason, and not that of the message before it.
    ended = failure.message.partition("not handled again: ")[2].split("; ")
    ways = [each.partition(" ended: ")[2] for each in ended]
    assert ways == ["killed by signal 11", "exit status 20", "exit status 30"], failure
    assert text(talk.send("0 on")[-1]) == "1:on"
    # Which operators see: where in the agent's code it was.
    kept = agents.json("conversations", "list", "mortal", "--all")
    [whose] = {each["principal"] for each in kept if each["conversation_id"] == talk.conversation_id}
    shown = agents.agent("conversations", "export", "mortal", talk.conversation_id, "--principal", whose).stdout
    traces = [json.loads(line)["failure"]["traceback"] for line in shown.splitlines() if '"failure"' in line]
    assert "Fatal Python error: Segmentation fault" in traces[0], traces
    assert "in on_message" in traces[0], traces


def curl(platform: Platform, path: str, *arguments: str) -> str:
    """What curl prints of a path of the HTTP port."""
    argv = ["curl", "-sSN", "--fail-with-body", "-m", "60", platform.http_address + path, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=90, check=True).stdout


def test_curl_streams_through_a_workers_death_and_goes_on_where_it_was(agents: Platform) -> None:
    said = {"messages": [{"role": "user", "content": "1 lived"}], "conversation_id": "curl", "message_id": "m"}
    streamed = curl(agents, "/agents/mortal/run", "-d", json.dumps({**said, "stream": True}))
    blocks = [block for block in streamed.split("\n\n") if block.startswith("id: ")]
    assert [block.split("\n")[0] for block in blocks] == [f"id: {n + 1}" for n in range(len(blocks))]
    assert blocks[-1].split("\n")[1] == "event: completion"
    # The same events, whichever way they are asked for.
    accept, after = ("-H", "accept: text/event-stream"), ("-H", "last-event-id: 3")
    events = "/agents/mortal/conversations/curl/events"
    rest = "\n\n".join(blocks[3:]) + "\n\n"
    assert curl(agents, "/agents/mortal/run", "-d", json.dumps(said), *accept, *after) == rest
    assert curl(agents, events + "?message_id=m", *accept, *after) == rest
    listed = json.loads(curl(agents, events + "?after=3"))["events"]
    assert listed == [json.loads(block.split("\ndata: ")[1]) for block in blocks[3:]]
    answer = json.loads(curl(agents, "/agents/mortal/run", "-d", json.dumps(said)))
    message = {"role": "assistant", "content": "2:lived", "message_id": "m", "metadata": {}}
    assert answer == {"messages": [message], "status": "completed", "conversation_id": "curl"}
    curl(agents, "/agents/mortal/conversations/curl", "-X", "DELETE")
    left = json.loads(curl(agents, "/agents/mortal/conversations"))["conversations"]
    assert "curl" not in [each["conversation_id"] for each in left]


def test_http_has_agents_and_describes_itself(agents: Platform) -> None:
    known = {each["name"]: each["conversations"] for each in json.loads(curl(agents, "/agents"))["agents"]}
    assert (known["mortal"], known["echo"]) == (True, False)
    # One that only generates is prompted, and keeps nothing.
    said = json.dumps({"messages": [{"role": "user", "content": "Hi"}]})
    answer = json.loads(curl(agents, "/agents/echo/run", "-d", said))
    assert (answer["status"], answer["conversation_id"]) == ("completed", "")
    assert "/agents/{agent_name}/run" in json.loads(curl(agents, "/openapi.json"))["paths"]
    assert curl(agents, "/docs").startswith("<!doctype html>")
