"""How calls are spread, counted, and kept from workers that fail, by a real Envoy. Workers say who they are."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as proto
from agentruntime._proto.uapi.v1 import agent_pool_pb2_grpc, text_generation_pb2_grpc
from agentruntime._proto.uapi.v1 import text_generation_pb2 as text
from grpc import aio

from tests.uapi_gateway.echo_service import echoing
from tests.uapi_gateway.pool_service import PoolStandIn, answered, deployment, running
from tests.uapi_gateway.stand_ins import Gateway, generate, worker_process
from tests.waiting import eventually
from uapi_gateway import inner, sockets
from uapi_gateway.admin import Admin
from uapi_gateway.kernel.carrying import Carrier
from uapi_gateway.kernel.peers import Peer

pytestmark = pytest.mark.integration


def places(agent: str, tmp: Path, count: int) -> dict[str, str]:
    return {f"{agent}-{n:02d}": f"unix:{tmp}/{agent}-{n:02d}.sock" for n in range(1, count + 1)}


def policy(
    agent: str, workers: dict[str, str], balancer: int = 0, threshold: int = 0, weights: tuple[int, ...] = ()
) -> proto.Deployment:
    made = deployment(agent, workers)
    made.settings.traffic.load_balancer = balancer  # type: ignore[assignment]  # a plain number is one
    made.settings.traffic.failure_threshold = threshold
    for worker, weight in zip(made.workers, weights, strict=False):
        worker.weight = weight
    return made


@contextlib.asynccontextmanager
async def serving(workers: dict[str, str]) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for worker_id, address in workers.items():
            await stack.enter_async_context(echoing(address, worker_id))
        yield


async def spread(channel: aio.Channel, agent: str, calls: int, *metadata: tuple[str, str]) -> Counter[str]:
    """Which workers answer so many calls, made one after the other."""
    answers = [await generate(channel, "x", *metadata, agent=agent) for _ in range(calls)]
    return Counter(answer.partition(":")[0] for answer in answers)


def stream(channel: aio.Channel, agent: str, words: int, pause_s: float) -> Any:
    stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
    prompt = " ".join(str(n) for n in range(words))
    request = text.StreamTextRequest(prompt=prompt, temperature=pause_s)
    return stub.StreamText(request, metadata=(("x-uapi-agent", agent),))


async def last(stream: Any) -> str:
    """The last piece of a stream that ends well."""
    piece = ""
    while (response := await stream.read()) is not aio.EOF:
        piece = response.text
    assert await stream.code() is grpc.StatusCode.OK
    return piece


class Callers:
    """Callers that never rest, and what failed them."""

    def __init__(self, channel: aio.Channel, agent: str, count: int = 4) -> None:
        self.failures: list[aio.AioRpcError] = []
        self.answers = 0
        self._done = False
        self._tasks = [asyncio.create_task(self._call(channel, agent)) for _ in range(count)]

    async def _call(self, channel: aio.Channel, agent: str) -> None:
        while not self._done:
            try:
                await generate(channel, "wait 0.002", agent=agent)
                self.answers += 1
            except aio.AioRpcError as error:
                self.failures.append(error)

    async def more(self, count: int) -> None:
        after = self.answers + count
        await eventually(lambda: self.answers >= after)

    async def end(self) -> None:
        self._done = True
        await asyncio.gather(*self._tasks)


async def health_flags(gateway: Gateway, agent: str) -> dict[str, str]:
    """What Envoy thinks of each of an agent's hosts, by socket."""
    lines = (await Admin(gateway.home.envoy_admin_socket).get("/clusters")).splitlines()
    cut = [line.split("::") for line in lines if line.startswith(f"agent/{agent}::")]
    return {part[1]: part[3] for part in cut if len(part) == 4 and part[2] == "health_flags"}


async def test_load_and_ejections_reach_the_pool(tmp_path: Path) -> None:
    pool = PoolStandIn()
    workers = places("a", tmp_path, 2)
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(worker_process(address, name)) for name, address in workers.items()]
        pool.put(deployment("a", workers))
        async with running(pool) as gateway, gateway.channel() as channel:
            await eventually(lambda: answered(channel, "a"))
            await eventually(lambda: len(pool.reports) > 1)
            # By the name of a worker is a call of its agent too.
            lasting = stream(channel, "a-01", 60, 0.05)
            calls = [asyncio.create_task(generate(channel, "wait 0.6", agent="a")) for _ in range(3)]
            await eventually(lambda: pool.load("a").in_flight == 4, timeout_s=2)
            await asyncio.gather(*calls)
            # A stream counts for as long as it lasts, whatever has been reported meanwhile.
            await eventually(lambda: pool.load("a").in_flight == 1, timeout_s=2)
            seen = len(pool.reports)
            await eventually(lambda: len(pool.reports) > seen + 2)
            assert pool.load("a").in_flight == 1
            assert await last(lasting) == "59"
            await eventually(lambda: not pool.reports[-1].loads, timeout_s=2)
            before = sum(load.begun for report in pool.reports for load in report.loads)
            await spread(channel, "a", 7)
            await eventually(
                lambda: sum(load.begun for report in pool.reports for load in report.loads) == before + 7, timeout_s=2
            )
            assert not any(report.ejected_worker_ids for report in pool.reports)
            processes[0].kill()
            processes[0].wait()
            killed = time.monotonic()
            await spread(channel, "a", 5)
            await eventually(lambda: any("a-01" in report.ejected_worker_ids for report in pool.reports))
            assert time.monotonic() - killed < 0.4


async def test_load_balancers(tmp_path: Path) -> None:
    pool = PoolStandIn()
    turns, talks, fit = (places(agent, tmp_path, 3) for agent in ("turns", "talks", "fit"))
    pool.put(policy("turns", turns, proto.LOAD_BALANCER_ROUND_ROBIN))
    pool.put(policy("talks", talks, proto.LOAD_BALANCER_STICKY))
    pool.put(policy("fit", fit, proto.LOAD_BALANCER_HEALTH_BASED, weights=(100, 100, 1)))
    async with serving({**turns, **talks, **fit}), running(pool) as gateway, gateway.channel() as channel:
        for agent in ("turns", "talks", "fit"):
            await eventually(lambda agent=agent: answered(channel, agent))  # type: ignore[misc]  # bound now
        # One thread of Envoy carries all that comes by one connection, so it takes them by turns exactly.
        assert sorted((await spread(channel, "turns", 30)).values()) == [10, 10, 10]
        homes: dict[str, str] = {}
        for name in map(str, range(20)):
            (homes[name],) = await spread(channel, "talks", 4, ("x-uapi-conversation", name))
        assert len(set(homes.values())) > 1
        assert len(await spread(channel, "talks", 30)) == 3
        # With one worker fewer, only its own conversations move.
        del talks["talks-03"]
        pool.put(policy("talks", talks, proto.LOAD_BALANCER_STICKY))
        await eventually(lambda: _left(gateway, "talks", 2))
        for name, worker in homes.items():
            (now,) = await spread(channel, "talks", 2, ("x-uapi-conversation", name))
            assert worker in (now, "talks-03")
        assert (await spread(channel, "fit", 60))["fit-03"] <= 4


async def test_a_callers_conversation_is_at_one_worker_however_it_is_called(tmp_path: Path) -> None:
    pool = PoolStandIn()
    talks = places("talks", tmp_path, 3)
    pool.put(policy("talks", talks, proto.LOAD_BALANCER_STICKY))
    asking = deployment("asking", {})
    asking.permissions.agents.append("talks")
    pool.put(asking)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(serving(talks))
        gateway = await stack.enter_async_context(running(pool))
        inside = await stack.enter_async_context(inner.channel(gateway.home))
        doors = {
            "anonymous": await stack.enter_async_context(gateway.channel()),
            "local": await stack.enter_async_context(gateway.channel(unix=True)),
            "agent:asking": await stack.enter_async_context(calling(gateway, "asking", tmp_path)),
        }
        found: dict[str, list[str]] = {}
        for principal, channel in doors.items():
            await eventually(lambda channel=channel: answered(channel, "talks"))  # type: ignore[misc]  # bound now
            # Whoever names no conversation is spread.
            assert len(await spread(channel, "talks", 30)) == 3
            for name in map(str, range(12)):
                # What a caller says of itself changes nothing.
                named = ("x-uapi-conversation", name)
                (home,) = await spread(channel, "talks", 2, named, ("x-uapi-conversation-key", "x"))
                # As the gateway's doors and its recovery call.
                ours = (named, ("x-uapi-principal", principal), ("x-uapi-caller-granted", "1"))
                assert await spread(inside, "talks", 2, *ours) == {home: 2}
                found.setdefault(name, []).append(home)
            assert "x-uapi-caller" not in await generate(channel, "headers", named, agent="talks")
        # Those of one name are not all at one worker.
        assert all(len(set(homes)) > 1 for homes in zip(*found.values(), strict=True))
        assert any(len(set(homes)) > 1 for homes in found.values())


@contextlib.asynccontextmanager
async def calling(gateway: Gateway, agent: str, tmp: Path) -> AsyncIterator[aio.Channel]:
    """A channel as a worker's, whose connections the kernel has told."""
    carrier, peer = Carrier(sockets.system_calls_socket(gateway.home)), Peer(agent, f"{agent}-01", 1, 0, 0)
    listening = sockets.bind_unix(tmp / "s")
    listening.listen()
    listening.setblocking(False)

    async def carry() -> None:
        connection, _ = await asyncio.get_running_loop().sock_accept(listening)
        connection.setblocking(False)
        await carrier.carry(connection, peer)

    carrying = asyncio.create_task(carry())
    try:
        async with aio.insecure_channel(f"unix:{tmp}/s") as channel:
            yield channel
        await carrying
    finally:
        carrying.cancel()
        listening.close()


async def _left(gateway: Gateway, agent: str, workers: int) -> bool:
    return len(await health_flags(gateway, agent)) == workers + 1


async def test_a_circuit_opens_and_closes_again(tmp_path: Path) -> None:
    pool = PoolStandIn()
    guarded, plain = places("guarded", tmp_path, 1), places("plain", tmp_path, 1)
    pool.put(policy("guarded", guarded, threshold=3))
    pool.put(policy("plain", plain))
    async with serving({**guarded, **plain}), running(pool) as gateway, gateway.channel() as channel:
        for agent in ("guarded", "plain"):
            await eventually(lambda agent=agent: answered(channel, agent))  # type: ignore[misc]  # bound now
        # What is the caller's affair, or not in a row, opens nothing; without a circuit breaker nothing does.
        for prompt in ("fail", "fail", "fail", "fail", "break", "break", "x", "break", "break", "x"):
            assert await _code(channel, "guarded", prompt) != "CIRCUIT_OPEN"
        for _ in range(10):
            assert await _code(channel, "plain", "break") == "UNAVAILABLE"
        assert await _code(channel, "plain", "x") == "OK"
        for _ in range(3):
            assert await _code(channel, "guarded", "break") == "UNAVAILABLE"
        await eventually(lambda: _is(channel, "guarded", "CIRCUIT_OPEN"), timeout_s=1)
        opened = time.monotonic()
        assert await _code(channel, "guarded", "x") == "CIRCUIT_OPEN"
        await eventually(lambda: any("guarded-01" in report.ejected_worker_ids for report in pool.reports))
        await eventually(lambda: _is(channel, "guarded", "OK"), timeout_s=8)
        assert time.monotonic() - opened > 3
        # A worker that is replaced at the same address begins anew.
        await eventually(lambda: _is(channel, "guarded", "CIRCUIT_OPEN", "break"), timeout_s=3)
        pool.put(policy("guarded", {}, threshold=3))
        await eventually(lambda: _left(gateway, "guarded", 0))
        pool.put(policy("guarded", guarded, threshold=3))
        await eventually(lambda: _is(channel, "guarded", "OK"), timeout_s=1)


async def _code(channel: aio.Channel, agent: str, prompt: str) -> str:
    """OK, or the reason of the error."""
    try:
        await generate(channel, prompt, agent=agent)
    except aio.AioRpcError as error:
        return status.decode(error).reason or error.code().name
    return "OK"


async def _is(channel: aio.Channel, agent: str, code: str, prompt: str = "x") -> bool:
    return await _code(channel, agent, prompt) == code


async def test_a_change_of_policy_loses_no_call(tmp_path: Path) -> None:
    pool = PoolStandIn()
    workers = places("a", tmp_path, 2)
    pool.put(policy("a", workers))
    async with serving(workers), running(pool) as gateway, gateway.channel() as channel:
        await eventually(lambda: answered(channel, "a"))
        lasting = [stream(channel, "a", 100, 0.05) for _ in range(4)]
        for each in lasting:
            assert (await each.read()).text == "0"
        callers = Callers(channel, "a")
        for turn in range(3):
            for balancer in (1, 2, 3, 4):
                pool.put(policy("a", workers, balancer, threshold=5 * (turn % 2), weights=(10 + turn, 90)))
                await callers.more(20)
        # Without its endpoints being sent along, a changed cluster would not be in use before 15 s.
        changed = time.monotonic()
        pool.put(policy("a", workers, proto.LOAD_BALANCER_STICKY))
        await eventually(lambda: _together(channel, "a"), timeout_s=5)
        assert time.monotonic() - changed < 2
        await callers.end()
        assert callers.failures == []
        # The streams go on in clusters that are no more: Envoy's reports lack them, the gateway's do not.
        await eventually(lambda: pool.load("a").in_flight == 4, timeout_s=2)
        for each in lasting:
            assert await last(each) == "99"
        await eventually(lambda: not pool.reports[-1].loads, timeout_s=2)


async def _together(channel: aio.Channel, agent: str) -> bool:
    return len(await spread(channel, agent, 12, ("x-uapi-conversation", "c"))) == 1


async def test_falling_asleep_and_waking_lose_no_call(tmp_path: Path) -> None:
    pool = PoolStandIn()
    workers = places("a", tmp_path, 1)
    pool.put(deployment("a", workers))
    async with serving(workers), running(pool) as gateway, gateway.channel() as channel:
        await eventually(lambda: answered(channel, "a"))
        lasting = [stream(channel, "a", 40, 0.05) for _ in range(4)]
        for each in lasting:
            assert (await each.read()).text == "0"
        callers = Callers(channel, "a")
        for _ in range(20):
            pool.put(deployment("a", workers, asleep=True))
            await eventually(lambda: _left(gateway, "a", 0))
            pool.put(deployment("a", workers))
            await callers.more(10)
        await callers.end()
        assert callers.failures == []
        for each in lasting:
            assert await last(each) == "39"


async def test_a_drained_worker_finishes_its_streams_and_gets_no_calls(tmp_path: Path) -> None:
    pool = PoolStandIn()
    workers = places("a", tmp_path, 2)
    pool.put(deployment("a", workers))
    async with serving(workers), running(pool) as gateway, gateway.channel() as channel:
        await eventually(lambda: answered(channel, "a"))
        lasting = stream(channel, "a-01", 30, 0.03)
        assert (await lasting.read()).text == "0"
        draining = deployment("a", workers)
        draining.workers[0].state = proto.WORKER_STATE_DRAINING
        pool.put(draining)
        # Then the pool tells the worker.
        await eventually(lambda: pool.acknowledged[-1:] == [pool.changes])
        assert await _left(gateway, "a", 1)
        assert set(await spread(channel, "a", 30)) == {"a-02"}
        assert await last(lasting) == "29"


async def test_killed_workers_get_no_more_calls_and_neither_does_the_relay(tmp_path: Path) -> None:
    pool = PoolStandIn()
    workers = places("a", tmp_path, 4)
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(worker_process(address, name)) for name, address in workers.items()]
        pool.put(deployment("a", workers))
        async with running(pool) as gateway, gateway.channel() as channel:
            await eventually(lambda: answered(channel, "a"))
            callers = Callers(channel, "a", 8)
            await callers.more(50)
            # The pool says nothing of it: Envoy must see it by itself, also when it happens again within a second.
            for process, address in list(zip(processes, workers.values(), strict=True))[:3]:
                process.kill()
                process.wait()
                await eventually(lambda: _ejected(gateway, address), timeout_s=1)  # noqa: B023 — awaited within
                tried = await attempts(gateway, address)
                await callers.more(60)
                # A call that was on its way there when the news came to its thread of Envoy.
                assert await attempts(gateway, address) <= tried + 8
            way_to_relay = str(sockets.hold_socket(gateway.home))
            assert way_to_relay in await health_flags(gateway, "a")
            assert await attempts(gateway, way_to_relay) == 0
            await callers.end()
            assert callers.failures == []


async def attempts(gateway: Gateway, address: str) -> int:
    """How often Envoy has sent a call of agent a to a host, or tried to connect there."""
    lines = (await Admin(gateway.home.envoy_admin_socket).get("/clusters")).splitlines()
    cut = [line.split("::") for line in lines if line.startswith(f"agent/a::{address.removeprefix('unix:')}::")]
    return sum(int(part[3]) for part in cut if part[2] in ("rq_total", "cx_connect_fail"))


async def test_a_worker_that_is_back_gets_calls_at_once(tmp_path: Path) -> None:
    pool = PoolStandIn()
    workers = places("a", tmp_path, 1)
    (name, address), *_ = workers.items()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(worker_process(address, name))
        pool.put(deployment("a", workers))
        async with running(pool) as gateway, gateway.channel() as channel:
            await eventually(lambda: answered(channel, "a"))
            callers = Callers(channel, "a")
            await callers.more(20)
            first.kill()
            first.wait()
            await eventually(lambda: _ejected(gateway, address))
            gone = deployment("a", workers)
            gone.workers[0].state = proto.WORKER_STATE_FAILED
            pool.put(gone)
            await eventually(lambda: _left(gateway, "a", 0))
            stack.enter_context(worker_process(address, name))
            pool.put(deployment("a", workers))
            ready = time.monotonic()
            await eventually(lambda: _healthy(gateway, address))
            assert time.monotonic() - ready < 0.2
            await callers.more(20)
            await callers.end()
            assert callers.failures == []


async def _ejected(gateway: Gateway, address: str) -> bool:
    return "outlier" in (await health_flags(gateway, "a")).get(address.removeprefix("unix:"), "")


async def _healthy(gateway: Gateway, address: str) -> bool:
    return (await health_flags(gateway, "a")).get(address.removeprefix("unix:")) == "healthy"


async def test_calls_wait_for_a_gateway_that_is_away(tmp_path: Path) -> None:
    pool = PoolStandIn()
    workers = places("late", tmp_path, 1)
    pool.put(deployment("late", {}, replicas=1))
    async with serving(workers), running(pool) as gateway, gateway.channel() as channel:
        await eventually(lambda: _waits(channel, "late"))
        gateway.kill()
        held = [asyncio.create_task(generate(channel, "x", agent="late", timeout_s=20)) for _ in range(20)]
        await gateway.start()
        # Envoy must not have ejected the way to the relay: nobody else could take the calls.
        held.append(asyncio.create_task(generate(channel, "x", agent="late")))
        pool.put(deployment("late", workers))
        assert await asyncio.gather(*held) == ["late-01: x"] * 21


async def _waits(channel: aio.Channel, agent: str) -> bool:
    """A call to an agent is held until its time is over."""
    try:
        await generate(channel, "x", agent=agent, timeout_s=1.0)
    except aio.AioRpcError as error:
        return status.decode(error).reason == "AGENT_NOT_READY"
    return False


async def test_an_agent_that_was_run_can_be_called_at_once() -> None:
    pool = PoolStandIn()
    async with running(pool) as gateway, gateway.channel() as channel, gateway.channel(unix=True) as operator:
        stub = agent_pool_pb2_grpc.AgentPoolStub(operator)
        for name in ("first", "second", "third"):
            answer = await stub.RunAgent(proto.RunAgentRequest(image="i", agent=name), timeout=5)
            assert answer.deployment.agent == name
            # It waits for a worker: the agent is known.
            assert await _waits(channel, name)
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.RunAgent(proto.RunAgentRequest(image="none", agent="x"), timeout=5)
        assert isinstance(status.decode(caught.value), errors.ImageNotFound)
        # Over TCP it needs the credential as before.
        with pytest.raises(aio.AioRpcError) as caught:
            await agent_pool_pb2_grpc.AgentPoolStub(channel).RunAgent(proto.RunAgentRequest(image="i"), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
