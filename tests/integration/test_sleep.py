"""Agents that sleep, over the whole platform: what calls find that arrive while there is no process."""

import asyncio
import time
from collections import Counter
from pathlib import Path

import grpc
import psutil
import pytest
from agentruntime import status
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime._proto.uapi.v1 import agent_pool_pb2_grpc, text_generation_pb2, text_generation_pb2_grpc
from grpc import aio

from tests.integration.conftest import Platform
from tests.waiting import eventually
from uapi_gateway.admin import Admin

pytestmark = [pytest.mark.integration, pytest.mark.root]

_CALLS = 1000
# Does not begin to serve before so many calls can have arrived.
SLOW = """
import asyncio
from agentruntime import Agent
class MyAgent(Agent):
    async def start(self):
        await asyncio.sleep(1)
    async def generate(self, prompt, *, temperature, max_tokens):
        return prompt
"""
BROKEN = """
from agentruntime import Agent
class MyAgent(Agent):
    async def start(self):
        raise RuntimeError("the model is gone")
    async def generate(self, prompt, *, temperature, max_tokens):
        return prompt
"""


async def register(platform: Platform, image: str, agent: str = "", **settings: object) -> None:
    """Registers an agent asleep."""
    request = pb.RunAgentRequest(
        image=image,
        agent=agent,
        replicas=0,
        settings=pb.AgentSettings(**settings),  # type: ignore[arg-type]  # fields of the message
    )
    async with aio.insecure_channel(f"unix:{platform.home.gateway_socket}") as channel:
        deployment = (await agent_pool_pb2_grpc.AgentPoolStub(channel).RunAgent(request, timeout=60)).deployment
    assert deployment.asleep
    admin = Admin(platform.home.envoy_admin_socket)

    async def routed() -> bool:
        return f"agent/{deployment.agent}::" in await admin.get("/clusters")

    # A few milliseconds after the pool's word.
    await eventually(routed)


async def workers(platform: Platform, agent: str) -> list[pb.Worker]:
    async with aio.insecure_channel(f"unix:{platform.home.gateway_socket}") as channel:
        request = pb.ListWorkersRequest(agent=agent)
        return list((await agent_pool_pb2_grpc.AgentPoolStub(channel).ListWorkers(request, timeout=60)).workers)


async def stop(platform: Platform, agent: str) -> None:
    async with aio.insecure_channel(f"unix:{platform.home.gateway_socket}") as channel:
        await agent_pool_pb2_grpc.AgentPoolStub(channel).StopAgent(pb.StopAgentRequest(name=agent), timeout=60)


async def call_at_once(
    platform: Platform, agent: str, count: int, timeout_s: float = 60.0
) -> list[aio.AioRpcError | str]:
    """What each of so many calls saw, all of them sent before any was answered."""
    async with aio.insecure_channel(platform.grpc_address) as channel:
        stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)

        async def one(number: int) -> aio.AioRpcError | str:
            request = text_generation_pb2.GenerateTextRequest(prompt=str(number))
            try:
                return (await stub.GenerateText(request, metadata=(("x-uapi-agent", agent),), timeout=timeout_s)).text
            except aio.AioRpcError as error:
                return error

        return await asyncio.gather(*(one(number) for number in range(count)))


def build(platform: Platform, project: Path, name: str, code: str) -> str:
    """Builds an agent; the image's reference."""
    (project / "agent.yaml").write_text(f"name: {name}\nversion: 1.0.0\nentrypoint: agent:MyAgent\n")
    (project / "agent.py").write_text(code)
    platform.agent("build", str(project))
    return f"{name}:1.0.0"


async def test_a_thousand_calls_at_once_wake_an_agent_once(platform: Platform, project: Path) -> None:
    await register(platform, build(platform, project, "dozing", SLOW))
    assert [row for row in platform.workers("dozing") if row["pid"]] == []
    seen = await call_at_once(platform, "dozing", _CALLS)
    assert seen == [str(number) for number in range(_CALLS)]
    [worker] = platform.workers("dozing")
    assert worker["restarts"] == 0
    await stop(platform, "dozing")


async def test_more_calls_than_may_wait_are_refused_at_once(platform: Platform, project: Path) -> None:
    await register(platform, build(platform, project, "narrow", SLOW), serving=pb.Serving(queue=5))
    began = time.monotonic()
    seen = await call_at_once(platform, "narrow", 20)
    kinds = Counter("OK" if isinstance(one, str) else status.decode(one).reason for one in seen)
    assert kinds == {"OK": 5, "QUEUE_FULL": 15}
    refused = [one for one in seen if isinstance(one, aio.AioRpcError)]
    assert {one.code() for one in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert time.monotonic() - began > 1, "it answered before it can have been awake"
    await stop(platform, "narrow")


async def test_a_wake_that_fails_answers_with_its_cause(platform: Platform, project: Path) -> None:
    await register(platform, build(platform, project, "broken", BROKEN))
    seen = await call_at_once(platform, "broken", 3, timeout_s=20)
    for one in seen:
        assert isinstance(one, aio.AioRpcError)
        assert "the model is gone" in (one.details() or "")
        assert one.code() is grpc.StatusCode.FAILED_PRECONDITION
    await stop(platform, "broken")


async def test_an_idle_agent_sleeps_by_itself_and_has_no_process(platform: Platform) -> None:
    scaling = pb.Scaling()
    scaling.idle_timeout.FromMilliseconds(1000)
    await register(platform, "echo:latest", "napper", scaling=scaling)
    assert await call_at_once(platform, "napper", 2) == ["0", "1"]
    [worker] = await workers(platform, "napper")
    await eventually(lambda: not psutil.pid_exists(worker.pid), timeout_s=15)
    assert await call_at_once(platform, "napper", 2) == ["0", "1"]
    await stop(platform, "napper")
