"""Agents that sleep, and answers that are given again, through a real Envoy; the pool is a stand-in."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import agent_gateway_pb2, agent_gateway_pb2_grpc, text_generation_pb2_grpc
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_proto
from agentruntime._proto.uapi.v1 import text_generation_pb2 as text
from grpc import aio

from tests.uapi_gateway.echo_service import echoing
from tests.uapi_gateway.pool_service import PoolStandIn, deployment
from tests.uapi_gateway.stand_ins import Gateway, generate, private_home
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


class Sleepers:
    """A gateway, a pool, and one worker that serves whichever agent wakes."""

    def __init__(self, gateway: Gateway, pool: PoolStandIn, address: str) -> None:
        self.gateway, self.pool, self.address = gateway, pool, address
        self.channel = gateway.channel()
        pool.on_wake = self._wake
        # What happens to a wake before it succeeds.
        self.before: Any = None

    async def _wake(self, agent: str) -> None:
        if self.before is not None:
            await self.before()
        self.pool.put(deployment(agent, {f"{agent}-01": self.address}))

    async def sleeping(self, agent: str, **changes: Any) -> None:
        """Puts an agent to sleep, and waits until Envoy knows."""
        self.pool.put(deployment(agent, {}, asleep=True, replicas=1, **changes))

        async def known() -> bool:
            return '"asleep"' in await http(self.gateway, f"/health/{agent}")

        await eventually(known)
        await eventually(lambda: routed(self.channel, agent))
        self.pool.put(deployment(agent, {}, asleep=True, replicas=1, **changes))
        await eventually(known)
        self.pool.woken.clear()


async def routed(channel: aio.Channel, agent: str) -> bool:
    try:
        return bool(await generate(channel, "x", agent=agent))
    except aio.AioRpcError:
        return False


async def http(gateway: Gateway, path: str) -> str:
    argv = ["curl", "-s", "-m", "5", gateway.http_address + path]
    process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sleepers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sleepers]:
    pool, address = PoolStandIn(), f"unix:{tmp_path_factory.mktemp('s')}/1.sock"
    with private_home() as home:
        gateway = Gateway(home)
        async with pool.serving(home), echoing(address, "worker"):
            try:
                await gateway.start()
                made = Sleepers(gateway, pool, address)
                yield made
                await made.channel.close()
            finally:
                gateway.stop()


async def test_a_thousand_calls_at_once_are_one_wake(sleepers: Sleepers) -> None:
    await sleepers.sleeping("a")
    health = json.loads(await http(sleepers.gateway, "/health/a"))
    assert (health["status"], health["state"]) == ("healthy", "asleep")
    calls = (generate(sleepers.channel, str(n), agent="a", timeout_s=60) for n in range(1000))
    assert await asyncio.gather(*calls) == [f"worker: {n}" for n in range(1000)]
    assert sleepers.pool.woken == ["a"]
    page = await http(sleepers.gateway, "/metrics")
    assert 'uapi_wakes_total{agent="a",outcome="ok"} 2.0' in page
    assert 'uapi_agent_asleep{agent="a"} 0.0' in page


async def test_every_way_to_name_an_agent_wakes_it(sleepers: Sleepers) -> None:
    await sleepers.sleeping("b", services=["acme.v1.Chatter"])

    async def chat(*metadata: tuple[str, str]) -> bytes:
        sleepers.pool.put(deployment("b", {}, asleep=True, replicas=1, services=["acme.v1.Chatter"]))
        await eventually(lambda: _asleep(sleepers, "b"))
        start: Any = sleepers.channel.stream_stream("/acme.v1.Chatter/Chat")
        call = start(iter([b"hi"]), metadata=metadata, timeout=5)
        return await call.read()  # type: ignore[no-any-return]  # bytes, without a deserializer

    assert await chat(("x-uapi-agent", "b")) == b"echo hi"

    # By its service alone, once Envoy has that route, too.
    async def by_service() -> bool:
        try:
            return await chat() == b"echo hi"
        except aio.AioRpcError as error:
            if "has just arrived" in str(error.details()):
                return False
            raise

    await eventually(by_service)
    # By a worker that it had when it fell asleep.
    assert await chat(("x-uapi-agent", "b-01")) == b"echo hi"


async def _asleep(sleepers: Sleepers, agent: str) -> bool:
    return '"asleep"' in await http(sleepers.gateway, f"/health/{agent}")


async def test_call_agent_wakes(sleepers: Sleepers) -> None:
    await sleepers.sleeping("c")
    stub = agent_gateway_pb2_grpc.AgentGatewayStub(sleepers.channel)
    request = agent_gateway_pb2.CallAgentRequest(agent_id="c", service="TextGenerationService", method="GenerateText")
    request.data.update({"prompt": "hi"})
    answer = await stub.CallAgent(request, timeout=5)
    assert answer.data["text"] == "worker: hi"
    assert sleepers.pool.woken == ["c"]


async def test_a_failed_wake_tells_its_cause(sleepers: Sleepers) -> None:
    await sleepers.sleeping("d")
    trace = "Traceback (most recent call last):\n" + "  File …, line 1, in <module>\n" * 40 + "KeyError: 'x'"

    async def fail() -> None:
        raise errors.AgentFailed(f"agent 'd' failed to import:\n{trace}")

    sleepers.before = fail
    try:
        with pytest.raises(aio.AioRpcError) as caught:
            await generate(sleepers.channel, "x", agent="d")
    finally:
        sleepers.before = None
    error = status.decode(caught.value)
    assert isinstance(error, errors.AgentFailed)
    assert error.message.endswith("KeyError: 'x'")


async def test_a_full_queue_refuses_at_once(sleepers: Sleepers) -> None:
    go = asyncio.Event()
    await sleepers.sleeping("e", settings=pool_proto.AgentSettings(serving=pool_proto.Serving(queue=3)))
    sleepers.before = go.wait
    try:
        calls = [asyncio.ensure_future(generate(sleepers.channel, "x", agent="e")) for _ in range(5)]
        await eventually(lambda: sum(call.done() for call in calls) == 2)
        refused = [status.decode(call.exception()) for call in calls if call.done()]  # type: ignore[arg-type]  # of gRPC
        assert [type(error) for error in refused] == [errors.QueueFull] * 2
    finally:
        go.set()
        sleepers.before = None
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers.count("worker: x") == 3


async def test_answers_are_given_again_and_by_workers_while_the_gateway_is_away(sleepers: Sleepers) -> None:
    made = deployment("f", {"f-01": sleepers.address}, revision=1)
    made.settings.cache.max_bytes = 10_000
    made.workers[0].revision = 1
    sleepers.pool.put(made)
    stub = text_generation_pb2_grpc.TextGenerationServiceStub(sleepers.channel)

    async def ask(prompt: str, *metadata: tuple[str, str]) -> tuple[str, str]:
        call = stub.GenerateText(
            text.GenerateTextRequest(prompt=prompt), metadata=(("x-uapi-agent", "f"), *metadata), timeout=5
        )
        answer = await call
        trailers: Any = await call.trailing_metadata()
        return answer.text, dict(trailers).get("x-uapi-cache", "")

    async def kept() -> bool:
        with contextlib.suppress(aio.AioRpcError):
            return await ask("x") == ("worker: x", "hit")
        return False

    await eventually(kept)
    assert await ask("y") == ("worker: y", "miss")
    assert await ask("y") == ("worker: y", "hit")
    assert await ask("y", ("x-uapi-conversation", "1")) == ("worker: y", "")
    assert await ask("y", ("x-uapi-cache", "no")) == ("worker: y", "")
    assert (await generate(sleepers.channel, "y", agent="f-01")) == "worker: y"
    # While the gateway is away, its worker answers every call itself.
    assert sleepers.gateway.process is not None
    sleepers.gateway.kill()
    for _ in range(20):
        assert await ask("y") == ("worker: y", "")
    await sleepers.gateway.start()
    await eventually(kept)


async def test_calls_outlive_the_gateway_that_holds_them(sleepers: Sleepers) -> None:
    await sleepers.sleeping("g")
    go = asyncio.Event()
    sleepers.before = go.wait

    async def chat() -> bytes:
        start: Any = sleepers.channel.stream_stream("/acme.v1.Chatter/Chat")
        call = start(iter([b"hi"]), metadata=(("x-uapi-agent", "g"),), timeout=20)
        return await call.read()  # type: ignore[no-any-return]  # bytes, without a deserializer

    held = asyncio.ensure_future(generate(sleepers.channel, "x", agent="g", timeout_s=20))
    # By nobody's proto it may be repeated, and the relay might have passed it on.
    once = asyncio.ensure_future(chat())
    await eventually(lambda: _held(sleepers, "g", 2))
    sleepers.gateway.kill()
    with pytest.raises(aio.AioRpcError) as caught:
        await once
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    # What comes while it is away waits for it, idempotent or not.
    waiting = asyncio.ensure_future(chat())
    go.set()
    await sleepers.gateway.start()
    sleepers.before = None
    assert await held == "worker: x"
    assert await waiting == b"echo hi"


async def _held(sleepers: Sleepers, agent: str, calls: int) -> bool:
    return f'uapi_relay_queued{{agent="{agent}"}} {calls}.0' in await http(sleepers.gateway, "/metrics")
