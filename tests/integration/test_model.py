"""An agent that thinks with the embedded model, by a system call; in a conversation, too."""

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from agentruntime import Client, errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import conversation_service_pb2_grpc, text_generation_pb2

from tests.integration.conftest import Platform
from tests.waiting import until

# The first to use the platform also waits for it.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
_MANIFEST = """
name: thinker
version: 1.0.0
entrypoint: thinker:Thinker
timeout: 120s
permissions:
  models: [smollm2]
"""
_CODE = """
from agentruntime import Agent, context

class Thinker(Agent):
    async def generate(self, prompt, *, temperature, max_tokens):
        model, _, prompt = prompt.partition(" ")
        if model == "whole":
            yield await context.model.generate(prompt, max_tokens=max_tokens)
            return
        async for piece in context.model.generate(prompt, model=model, max_tokens=max_tokens):
            yield piece

    async def on_message(self, message, ctx):
        async for piece in ctx.model.generate(message.text, max_tokens=1900):
            yield piece
"""


@pytest.fixture
def thinker(platform: Platform, project: Path) -> Iterator[Platform]:
    (project / "agent.yaml").write_text(_MANIFEST)
    (project / "thinker.py").write_text(_CODE)
    platform.agent("build", str(project))
    try:
        assert "It may use: models smollm2" in platform.agent("run", "thinker:1.0.0", "--native").stdout
        yield platform
    finally:
        for name in ("thinker", "model-smollm2"):
            platform.agent("stop", name)


def test_an_agent_thinks_and_ends_what_it_leaves(thinker: Platform) -> None:
    assert thinker.workers("model-smollm2") == []
    with Client(thinker.grpc_address) as client:
        asked = "What colour is the sky?"
        pieces = [
            piece.text for piece in client.stream_text("thinker", f"smollm2 {asked}", max_tokens=12, timeout_s=90)
        ]
        # The model's agent has come to run, as any agent.
        (worker,) = thinker.workers("model-smollm2")
        assert len(pieces) > 5
        assert "blue" in "".join(pieces)
        whole = client.generate_text("thinker", f"whole {asked}", max_tokens=12, timeout_s=60).text
        assert whole == "".join(pieces)
        with pytest.raises(errors.PermissionDenied, match=r"permissions: \{models: \[smollm2, large\]\}"):
            client.generate_text("thinker", f"large {asked}")
        # As much as it can write, which takes it more than the wait below: left after a few words.
        request = text_generation_pb2.StreamTextRequest(prompt="smollm2 Write a long story.", max_tokens=1900)
        story = client.agent("thinker").text_generation.StreamText(request, timeout=120)
        assert [next(story).text for _ in range(3)]
        model = psutil.Process(worker["pid"])
        assert _cpu_s(model) > 0.1
        story.cancel()
        until(lambda: _cpu_s(model) < 0.03, timeout_s=10)
        conversations = client.stub(conversation_service_pb2_grpc.ConversationServiceStub, agent="thinker")
        to = (("x-uapi-conversation", "one"),)
        said = proto.ChatMessage(parts=[proto.Part(text="Write a long story.")])
        message = proto.StreamMessageRequest(conversation_id="one", message_id="m", message=said)
        events = conversations.StreamMessage(message, metadata=to, timeout=60)
        assert any(each.event.HasField("chunk") for each in events)
        cancel = proto.CancelMessageRequest(conversation_id="one", message_id="m")
        conversations.CancelMessage(cancel, metadata=to, timeout=10)
        *_, last = events
        assert last.event.failure.code == grpc.StatusCode.CANCELLED.value[0]
        until(lambda: _cpu_s(model) < 0.03, timeout_s=10)
    denied = thinker.agent("audit", "--principal", "agent:thinker").stdout
    assert "denied  agent:thinker (thinker-01)  model large: permissions" in denied
    assert "allowed agent:thinker (thinker-01)  AgentPool/RunAgent model-smollm2" in denied


def _cpu_s(process: psutil.Process) -> float:
    """What a process computes in a second: a token takes it more than a hundredth."""
    before = sum(process.cpu_times()[:2])
    time.sleep(1.0)
    return float(sum(process.cpu_times()[:2]) - before)
