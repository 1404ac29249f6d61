"""The relay's decisions, and how it carries calls: held, woken for, refused, made again, answered from the cache."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_proto
from agentruntime._proto.uapi.v1 import text_generation_pb2 as text
from agentruntime._proto.uapi.v1 import text_generation_pb2_grpc
from agentruntime.errors import AgentError, AgentNotReady, AgentStopped
from agentruntime.home import Home
from google.protobuf import duration_pb2
from grpc import aio

from tests.uapi_gateway.echo_service import echoing
from tests.uapi_gateway.pool_service import deployment
from tests.uapi_gateway.relay_server import RelayServer, relaying
from tests.uapi_gateway.stand_ins import worker_process
from tests.uapi_gateway.test_ejections import event
from tests.uapi_gateway.test_registry import agent
from tests.waiting import eventually
from uapi_gateway.deployments import from_deployment
from uapi_gateway.registry import Agent, Registry
from uapi_gateway.relay import decide, patience_s
from uapi_gateway.xds.routes import AGENT_HEADER


@pytest.mark.parametrize(
    ("known", "expired", "kind", "words"),
    [
        (agent("a", stopped=True, image="a:1"), False, AgentStopped, "start it with: agent run a:1"),
        (agent("a", stopped=True, image="b:1"), False, AgentStopped, "start it with: agent run b:1 --name a"),
        (agent("a", asleep=True), True, AgentNotReady, "it sleeps and has not woken in time"),
        (agent("a", "a-01", ready=False), True, AgentNotReady, "no worker is ready yet"),
        (agent("a", "a-01"), True, AgentNotReady, "cannot be reached"),
    ],
)
def test_refusals(known: Agent, expired: bool, kind: type[AgentError], words: str) -> None:
    registry = Registry()
    registry.put_pool_agent(known)
    error = decide(registry.require("a"), expired=expired)
    assert isinstance(error, kind)
    assert error.message.endswith(words)


def test_a_pool_that_is_away_is_said_to_be() -> None:
    registry = Registry()
    registry.put_pool_agent(agent("a", asleep=True))
    error = decide(registry.require("a"), expired=True, pool_away=True)
    assert error is not None
    assert "the pool does not answer" in error.message


@pytest.mark.parametrize("known", [agent("a", "a-01", ready=False), agent("a", asleep=True)])
def test_calls_to_an_agent_that_may_come_wait(known: Agent) -> None:
    registry = Registry()
    registry.put_pool_agent(known)
    assert decide(registry.require("a"), expired=False, pool_away=True) is None


def test_the_reason_arrives_before_the_deadline() -> None:
    assert patience_s(None) is None
    assert patience_s(0.01) == pytest.approx(-0.0105)
    assert patience_s(1.0) == pytest.approx(0.93)
    assert patience_s(60.0) == pytest.approx(59.73)


async def test_a_refusal_has_headers_of_its_own(home: Home) -> None:
    """Without them Envoy counts it as a failure of the relay, and ejects it like a worker."""
    sent: list[Any] = []

    class Context:
        def invocation_metadata(self) -> Any:
            return ((AGENT_HEADER, "a"),)

        def time_remaining(self) -> float:
            return 5.0

        async def send_initial_metadata(self, metadata: Any) -> None:
            sent.append(metadata)

    async def requests() -> AsyncIterator[bytes]:
        yield b""

    async with relaying(home) as server:
        server.put("a", {"a-01": "unix:/nowhere"}, stopped=True)
        with pytest.raises(AgentStopped):
            await anext(aiter(server.relay.pass_through("/x.X/Y", requests(), cast("Any", Context()))))
    assert sent == [()]


def asleep(**changes: object) -> dict[str, object]:
    return {"asleep": True, "replicas": 1, **changes}


async def refusal(server: RelayServer, name: str, *, prompt: str = "x", timeout_s: float | None = 5.0) -> AgentError:
    with pytest.raises(aio.AioRpcError) as caught:
        await server.call(prompt, name, timeout_s=timeout_s)
    return status.decode(caught.value)


async def test_a_thousand_calls_are_one_wake(home: Home, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/1.sock"
    async with relaying(home) as server, server.pool.serving(home), echoing(address, "a-01"):
        server.put("a", {}, **asleep())

        async def start(_agent: str) -> None:
            # Everybody waits before it is there.
            await eventually(lambda: server.relay.figures().waiting.get("a") == 1000)
            # The pool's answer is enough: the watch has not said it yet.
            server.awake("a", {"a-01": address})

        server.pool.on_wake = start
        answers = await asyncio.gather(*(server.call(str(n), "a", timeout_s=60) for n in range(1000)))
        assert answers == [f"a-01: {n}" for n in range(1000)]
        # Nor is it asked again while the registry lags behind.
        assert await server.call("late", "a") == "a-01: late"
        assert server.pool.woken == ["a"]
        ((name, wakes),) = server.relay.figures().wakes
        assert (name, wakes.outcomes, sum(wakes.buckets)) == ("a", {"ok": 1}, 1)
        assert server.relay.figures().waiting == {}
        assert [(load.agent, load.begun, load.in_flight, load.queued) for load in server.load.report()] == [
            ("a", 1001, 0, 0)
        ]


async def test_the_watch_may_be_faster_than_the_pools_answer(home: Home, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/1.sock"
    async with relaying(home) as server, server.pool.serving(home), echoing(address, "a-01"):
        server.put("a", {}, **asleep())
        answered = asyncio.Event()

        async def start(_agent: str) -> None:
            server.put("a", {"a-01": address})
            await answered.wait()

        server.pool.on_wake = start
        assert await server.call("x", "a") == "a-01: x"
        answered.set()
        await eventually(lambda: [wakes.outcomes for _, wakes in server.relay.figures().wakes] == [{"ok": 1}])


async def test_a_failed_wake_answers_all_that_wait_with_its_cause(home: Home) -> None:
    async with relaying(home) as server, server.pool.serving(home):
        server.put("a", {}, **asleep())

        async def fail(_agent: str) -> None:
            await eventually(lambda: server.relay.figures().waiting.get("a") == 5)
            raise errors.AgentFailed("agent 'a' failed to import:\nTraceback …\nKeyError: 'x'", metadata={"k": "v"})

        server.pool.on_wake = fail
        for error in await asyncio.gather(*(refusal(server, "a") for _ in range(5))):
            assert isinstance(error, errors.AgentFailed)
            assert error.message.endswith("KeyError: 'x'")
            assert error.metadata == {"k": "v"}
        assert server.pool.woken == ["a"]
        ((_, wakes),) = server.relay.figures().wakes
        assert wakes.outcomes == {"failed": 1}


async def test_the_callers_deadline_wins(home: Home) -> None:
    async with relaying(home) as server, server.pool.serving(home):
        server.put("a", {}, **asleep())
        ended = asyncio.Event()

        async def hang(_agent: str) -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                ended.set()

        server.pool.on_wake = hang
        error = await refusal(server, "a", timeout_s=1.0)
        assert isinstance(error, AgentNotReady)
        assert error.message == "agent 'a' is not ready: it sleeps and has not woken in time"
        # Nobody waits any more, so nobody asks any more.
        await asyncio.wait_for(ended.wait(), 5)
        ((_, wakes),) = server.relay.figures().wakes
        assert wakes.outcomes == {"abandoned": 1}


async def test_callers_that_hang_up_leave_nothing_behind(home: Home) -> None:
    async with relaying(home, relay_held_bytes=2 * (2**20 + 1000)) as server, server.pool.serving(home):
        server.put("a", {}, **asleep())
        server.pool.on_wake = _never
        calls = [asyncio.ensure_future(server.call("x" * 1000, "a", timeout_s=None)) for _ in range(50)]
        await eventually(lambda: server.relay.figures().waiting.get("a") == 50)
        for call in calls:
            call.cancel()
        await eventually(lambda: server.relay.figures().waiting == {})
        await eventually(lambda: [wakes.outcomes for _, wakes in server.relay.figures().wakes] == [{"abandoned": 1}])
        # All that it may hold is free again.
        assert server.load.report() == [pool_proto.AgentLoad(agent="a", begun=50)]
        for name in ("a",) * 3:
            error = await refusal(server, name, prompt="x" * (2**20), timeout_s=0.1)
            assert not isinstance(error, errors.QueueFull), error


async def _never(_agent: str) -> None:
    await asyncio.sleep(3600)


async def test_a_pool_that_comes_back_is_asked(home: Home, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/1.sock"
    async with relaying(home) as server, echoing(address, "a-01"):
        server.put("a", {}, **asleep())
        assert "the pool does not answer" in (await refusal(server, "a", timeout_s=1.0)).message
        waiting = asyncio.ensure_future(server.call("x", "a", timeout_s=20))
        await eventually(lambda: server.relay.figures().waiting)
        # One that ends while it is asked.
        asked = asyncio.Event()

        async def hang(_agent: str) -> None:
            asked.set()
            await asyncio.sleep(3600)

        server.pool.on_wake = hang
        async with server.pool.serving(home):
            await asyncio.wait_for(asked.wait(), 10)
        server.pool.on_wake = None
        server.awake("a", {"a-01": address})
        async with server.pool.serving(home):
            assert await waiting == "a-01: x"


async def test_a_full_queue_refuses_at_once(home: Home, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/1.sock"
    async with relaying(home, relay_held_bytes=8200) as server, server.pool.serving(home), echoing(address, "a-01"):
        server.put("b", {}, **asleep())
        server.put("a", {}, **asleep())
        server.registry.put_pool_agent(replace(server.registry.require("a").agent, queue=2))
        go = asyncio.Event()

        async def start(_agent: str) -> None:
            await go.wait()
            server.awake("a", {"a-01": address})

        server.pool.on_wake = start
        waiting = [asyncio.ensure_future(server.call(str(n), "a")) for n in range(2)]
        await eventually(lambda: server.relay.figures().waiting.get("a") == 2)
        error = await refusal(server, "a")
        assert isinstance(error, errors.QueueFull)
        assert error.metadata == {"agent": "a", "queue": "2"}
        # And by bytes, of all agents together.
        big = asyncio.ensure_future(server.call("x" * 3900, "b", timeout_s=1))
        await eventually(lambda: server.relay.figures().waiting.get("b") == 1)
        assert isinstance(await refusal(server, "b", prompt="x" * 200), errors.QueueFull)
        with contextlib.suppress(aio.AioRpcError):
            await big
        go.set()
        assert await asyncio.gather(*waiting) == ["a-01: 0", "a-01: 1"]


async def test_a_worker_named_while_its_agent_sleeps(home: Home, tmp_path: Path) -> None:
    addresses = {f"a-0{n}": f"unix:{tmp_path}/{n}.sock" for n in (1, 2)}
    async with (
        relaying(home) as server,
        server.pool.serving(home),
        echoing(addresses["a-01"], "a-01"),
        echoing(addresses["a-02"], "a-02"),
    ):
        server.put("a", addresses, **asleep())
        server.awake("a", {"a-01": addresses["a-01"]})
        second = asyncio.ensure_future(server.call("x", "a-02"))
        assert await server.call("x", "a-01") == "a-01: x"
        # The others follow.
        server.put("a", addresses)
        assert await second == "a-02: x"


async def test_streams_are_held_too(home: Home, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/1.sock"
    async with relaying(home) as server, server.pool.serving(home), echoing(address, "a-01"):
        server.put("a", {}, **asleep())
        server.awake("a", {"a-01": address})
        stub = text_generation_pb2_grpc.TextGenerationServiceStub(server.channel)
        stream = stub.StreamText(text.StreamTextRequest(prompt="a b"), metadata=(("x-uapi-agent", "a"),), timeout=5)
        assert [piece.text async for piece in stream] == ["a", "b"]
        chat: Any = server.channel.stream_stream("/acme.v1.Chatter/Chat")
        both = chat(metadata=(("x-uapi-agent", "a"),), timeout=5)
        for message in (b"1", b"2"):
            await both.write(message)
            assert await both.read() == b"echo " + message
        assert [load.in_flight for load in server.load.report()] == [1]
        await both.done_writing()
        assert await both.read() is aio.EOF


async def test_a_stream_that_a_worker_refuses_goes_on_at_another(home: Home, tmp_path: Path) -> None:
    addresses = {f"a-0{n}": f"unix:{tmp_path}/{n}.sock" for n in (1, 2)}
    async with relaying(home) as server, echoing(addresses["a-01"], "a-01"), echoing(addresses["a-02"], "a-02"):
        server.put("a", addresses, idempotent=False)
        chat: Any = server.channel.stream_stream("/acme.v1.Chatter/Chat")
        for early in (True, False) * 2:
            both = chat(metadata=(("x-uapi-agent", "a"), ("x-refused-by", "a-01")), timeout=5)
            if early:
                await both.write(b"0")
                assert await both.read() == b"echo 0"
            for message in (b"1", b"2"):
                await both.write(message)
                assert await both.read() == b"echo " + message
            await both.done_writing()
            assert await both.read() is aio.EOF


async def test_a_caller_that_waits_for_metadata_before_it_speaks(home: Home, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/1.sock"
    async with relaying(home) as server, echoing(address, "a-01"):
        server.put("a", {"a-01": address})
        chat: Any = server.channel.stream_stream("/acme.v1.Chatter/Chat")
        both = chat(metadata=(("x-uapi-agent", "a"), ("x-greeted", "yes")), timeout=5)
        assert dict(await both.initial_metadata())["x-answered-by"] == "a-01"
        await both.write(b"1")
        assert await both.read() == b"echo 1"
        await both.done_writing()
        assert await both.read() is aio.EOF


async def test_a_stream_that_has_begun_holds_nothing(home: Home, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/1.sock"
    async with relaying(home, relay_held_bytes=4000) as server, echoing(address, "a-01"):
        server.put("a", {"a-01": address})
        chat: Any = server.channel.stream_stream("/acme.v1.Chatter/Chat")
        streams = [chat(metadata=(("x-uapi-agent", "a"),), timeout=5) for _ in range(4)]
        for both in streams:
            for _ in range(2):
                await both.write(b"x" * 1000)
                assert await both.read() == b"echo " + b"x" * 1000
        assert await server.call("x" * 1000, "a") == "a-01: " + "x" * 1000
        for both in streams:
            both.cancel()


async def test_a_call_that_was_begun_says_so_though_no_other_worker_comes(home: Home, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/1.sock"
    async with relaying(home) as server:
        with worker_process(address, "a-01") as worker:
            server.put("a", {"a-01": address})
            # Connected: what is sent from here on reaches the worker.
            assert await server.call("x", "a") == "a-01: x"
            once = asyncio.ensure_future(refusal(server, "a", prompt="wait 30", timeout_s=2))
            await eventually(lambda: [load.in_flight for load in server.load.report()] == [1])
            worker.kill()
            assert (await once).reason == "WORKER_LOST"


async def test_a_lost_worker(home: Home, tmp_path: Path) -> None:
    addresses = {f"{name}-01": f"unix:{tmp_path}/{name}.sock" for name in ("a", "b")}
    async with relaying(home) as server, echoing(f"unix:{tmp_path}/2.sock", "a-02"):
        with worker_process(addresses["a-01"], "a-01") as worker:
            server.put("a", {"a-01": addresses["a-01"]})
            server.put("b", {"b-01": addresses["a-01"]}, idempotent=False)
            # Connected: what is sent from here on reaches the worker.
            assert await server.call("x", "a") == "a-01: x"
            again = asyncio.ensure_future(server.call("wait 0.5", "a"))
            once = asyncio.ensure_future(refusal(server, "b", prompt="wait 0.5"))
            await eventually(lambda: [load.in_flight for load in server.load.report()] == [1, 1])
            worker.kill()
            error = await once
            assert (type(error), error.reason) == (errors.Unavailable, "WORKER_LOST")
            server.put("a", {"a-02": f"unix:{tmp_path}/2.sock"})
            assert await again == "a-02: wait 0.5"
        # Another worker takes the same socket: no channel waits out a back-off.
        (tmp_path / "a.sock").unlink()
        async with echoing(addresses["a-01"], "a-03"):
            assert await server.call("x", "b", timeout_s=1) == "a-03: x"


async def test_a_worker_that_drains_has_not_begun_the_call(home: Home, tmp_path: Path) -> None:
    addresses = {f"a-0{n}": f"unix:{tmp_path}/{n}.sock" for n in (1, 2)}
    async with relaying(home) as server, echoing(addresses["a-01"], "a-01"), echoing(addresses["a-02"], "a-02"):
        server.put("a", addresses, idempotent=False)
        for _ in range(4):
            assert await server.call("not a-01", "a") == "a-02: not a-01"
        # An answer is one, whatever its metadata says.
        assert await server.call("begun", "a") == "begun"
        error = await refusal(server, "a-01", prompt="not a-01")
        assert isinstance(error, errors.WorkerDraining)


async def test_an_open_circuit_is_said_at_once(home: Home, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/1.sock"
    async with relaying(home) as server, echoing(address, "a-01"):
        server.put("a", {"a-01": address})
        assert await server.call("x", "a") == "a-01: x"
        server.ejections.take(event("agent/a", f"{tmp_path}/1.sock"), time.monotonic())
        error = await refusal(server, "a")
        assert isinstance(error, errors.CircuitOpen)


async def test_answers_are_given_again(home: Home, tmp_path: Path) -> None:
    settings = pool_proto.AgentSettings(
        cache=pool_proto.Cache(max_bytes=10_000, ttl=duration_pb2.Duration(seconds=60))
    )
    async with relaying(home) as server, contextlib.AsyncExitStack() as stack:
        workers = {f"a-0{n}": f"unix:{tmp_path}/{n}.sock" for n in (1, 2)}
        for name, address in workers.items():
            await stack.enter_async_context(echoing(address, name))

        def put(revision: int, **changes: object) -> None:
            made = deployment("a", workers, revision=revision, **changes)
            made.settings.CopyFrom(settings)
            for worker in made.workers:
                worker.revision = revision
            server.registry.put_pool_agent(from_deployment(made))

        put(1)
        stub = text_generation_pb2_grpc.TextGenerationServiceStub(server.channel)

        async def ask(prompt: str, *metadata: tuple[str, str], name: str = "a") -> tuple[str, str]:
            call = stub.GenerateText(
                text.GenerateTextRequest(prompt=prompt), metadata=(("x-uapi-agent", name), *metadata), timeout=5
            )
            answer = await call
            trailers = {str(k): str(v) for k, v in await call.trailing_metadata() or ()}
            assert trailers["x-trailer"] == "kept"
            initial = dict(await call.initial_metadata() or ())
            assert initial["x-answered-by"] in workers
            return answer.text, trailers.get("x-uapi-cache", "")

        first, how = await ask("x")
        assert how == "miss"
        for _ in range(4):
            assert await ask("x") == (first, "hit")
        assert (await ask("y"))[1] == "miss"
        # Another caller; a conversation; one that wants it fresh; one worker's own answer.
        assert (await ask("x", ("authorization", "Bearer someone")))[1] == "miss"
        assert (await ask("x", ("x-uapi-conversation", "1")))[1] == ""
        assert (await ask("x", ("x-uapi-cache", "no")))[1] == ""
        assert await ask("x", name="a-02") == ("a-02: x", "")
        # It sleeps: no need to wake it. Stopped: no answer.
        put(1, asleep=True)
        assert await ask("x") == (first, "hit")
        put(1, stopped=True)
        assert isinstance(await refusal(server, "a"), AgentStopped)
        put(1)
        assert await ask("x") == (first, "hit")
        put(2)
        assert (await ask("x"))[1] == "miss"
        # Errors are not kept.
        for _ in range(2):
            with pytest.raises(aio.AioRpcError) as caught:
                await ask("fail")
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert dict(caught.value.trailing_metadata() or ())["x-uapi-cache"] == "miss"
        ((_, figures),) = server.relay.figures().caches
        assert (figures.hits, figures.evictions) == (6, 0)
        assert figures.size_bytes > 0
        # Hits are no load: no worker has seen them.
        assert [load.begun for load in server.load.report()] == [10]
        server.registry.remove_pool_agent("a")
        assert list(server.relay.figures().caches) == []
