"""What callers see while workers, Envoy, the gateway or the pool are killed. Each test has a platform of its own."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_proto
from agentruntime._proto.uapi.v1 import agent_pool_pb2_grpc, agent_registry_pb2_grpc, text_generation_pb2_grpc
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_proto
from agentruntime._proto.uapi.v1 import text_generation_pb2 as text
from agentruntime.home import Home
from grpc import aio

from tests.uapi_gateway.echo_service import echoing
from tests.uapi_gateway.pool_service import PoolStandIn, answered, deployment, running
from tests.uapi_gateway.stand_ins import ROOT, Gateway, generate, worker_process
from tests.waiting import eventually
from uapi_gateway.admin import Admin

pytestmark = pytest.mark.integration


async def test_a_killed_worker_costs_no_idempotent_call(tmp_path: Path) -> None:
    pool = PoolStandIn()
    with contextlib.ExitStack() as stack:
        addresses = {f"a-{n:02d}": f"unix:{tmp_path}/{n}.sock" for n in range(1, 4)}
        workers = [stack.enter_context(worker_process(a, name)) for name, a in addresses.items()]
        pool.put(deployment("a", addresses))
        async with running(pool) as gateway, gateway.channel() as channel:
            await eventually(lambda: answered(channel, "a"))
            answers: list[str] = []
            done = asyncio.Event()

            async def caller() -> None:
                while not done.is_set():
                    answers.append(await generate(channel, "wait 0.005", agent="a", timeout_s=10))

            callers = [asyncio.create_task(caller()) for _ in range(8)]
            await eventually(lambda: len(answers) > 100)
            workers[0].kill()
            after = len(answers)
            await eventually(lambda: len(answers) > after + 200)
            # All the others too: now the relay holds the calls, until a worker is there again.
            for worker in workers[1:]:
                worker.kill()
            pool.put(deployment("a", {}, replicas=1))
            stack.enter_context(worker_process(f"unix:{tmp_path}/9.sock", "a-09"))
            pool.put(deployment("a", {"a-09": f"unix:{tmp_path}/9.sock"}))
            await eventually(lambda: answers[-1].startswith("a-09"))
            done.set()
            failed = [each for each in await asyncio.gather(*callers, return_exceptions=True) if each is not None]
            assert failed == []


async def test_an_agent_that_opted_out_is_not_called_twice(tmp_path: Path) -> None:
    pool = PoolStandIn()
    address, other = f"unix:{tmp_path}/1.sock", f"unix:{tmp_path}/2.sock"
    with worker_process(address, "once-01") as worker:
        pool.put(deployment("once", {"once-01": address}, idempotent=False))
        async with echoing(other, "once-02"), running(pool) as gateway, gateway.channel() as channel:
            await eventually(lambda: answered(channel, "once"))
            call = asyncio.create_task(generate(channel, "hang", agent="once", timeout_s=10))
            await eventually(lambda: _called(gateway, "once"))
            pool.put(deployment("once", {"once-01": address, "once-02": other}, idempotent=False))
            await eventually(lambda: _names(channel, "once", "once-02"))
            worker.kill()
            with pytest.raises(aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert status.decode(caught.value).reason == "WORKER_LOST"


async def test_a_call_that_a_draining_worker_has_not_begun_goes_to_another(tmp_path: Path) -> None:
    pool = PoolStandIn()
    addresses = {f"once-{n:02d}": f"unix:{tmp_path}/{n}.sock" for n in (1, 2)}
    pool.put(deployment("once", addresses, idempotent=False))
    async with contextlib.AsyncExitStack() as stack:
        for name, address in addresses.items():
            await stack.enter_async_context(echoing(address, name))
        gateway = await stack.enter_async_context(running(pool))
        channel = await stack.enter_async_context(gateway.channel())
        await eventually(lambda: answered(channel, "once"))
        for _ in range(20):
            assert (await generate(channel, "drained once-01", agent="once")).startswith("once-02")
        with pytest.raises(aio.AioRpcError) as caught:
            await generate(channel, "drained all", agent="once")
        assert type(status.decode(caught.value)) is errors.WorkerDraining


async def _called(gateway: Gateway, agent: str) -> bool:
    """A worker has a call."""
    name = f"cluster.agent/{agent}.upstream_rq_active"
    return (await Admin(gateway.home.envoy_admin_socket).get(f"/stats?filter={name}")).strip() == f"{name}: 1"


async def _names(channel: aio.Channel, agent: str, worker: str) -> bool:
    return (await generate(channel, "x", agent=agent)).startswith(worker)


async def test_calls_wait_for_a_worker_and_are_told_why_there_is_none(tmp_path: Path) -> None:
    pool = PoolStandIn()
    starting = deployment("late", {"late-01": f"unix:{tmp_path}/1.sock"})
    starting.workers[0].state = pool_proto.WORKER_STATE_STARTING
    starting.workers[0].reason = "loading the model"
    pool.put(starting)
    pool.put(deployment("halted", {}, stopped=True))
    async with running(pool) as gateway, gateway.channel() as channel:
        await eventually(lambda: _reason(channel, "late", "AGENT_NOT_READY"))
        with pytest.raises(aio.AioRpcError) as caught:
            await generate(channel, "x", agent="late", timeout_s=0.5)
        error = status.decode(caught.value)
        assert isinstance(error, errors.AgentNotReady)
        assert "loading the model" in error.message
        with pytest.raises(aio.AioRpcError) as caught:
            await generate(channel, "x", agent="halted")
        error = status.decode(caught.value)
        assert isinstance(error, errors.AgentStopped)
        assert "agent run halted:latest" in error.message
        waiting = [asyncio.create_task(generate(channel, "x", agent=name)) for name in ("late", "late-01")]
        # Without a name: the only agent that serves it and is not stopped.
        waiting.append(asyncio.create_task(generate(channel, "x")))
        fails = asyncio.create_task(generate(channel, "fail", agent="late"))
        stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
        stream = stub.StreamText(
            text.StreamTextRequest(prompt="a b"), metadata=(("x-uapi-agent", "late"),), timeout=5
        )
        async with echoing(f"unix:{tmp_path}/1.sock", "late-01"):
            pool.put(deployment("late", {"late-01": f"unix:{tmp_path}/1.sock"}))
            assert await asyncio.gather(*waiting) == ["late-01: x"] * 3
            assert [piece.text async for piece in stream] == ["a", "b"]
            with pytest.raises(aio.AioRpcError) as caught:
                await fails
            assert isinstance(status.decode(caught.value), errors.InsufficientResources)


async def _reason(channel: aio.Channel, agent: str, reason: str) -> bool:
    try:
        await generate(channel, "x", agent=agent, timeout_s=0.3)
    except aio.AioRpcError as error:
        return status.decode(error).reason == reason
    return False


async def test_envoy_is_started_again_when_it_is_killed(tmp_path: Path) -> None:
    pool = PoolStandIn()
    pool.put(deployment("a", {"a-01": f"unix:{tmp_path}/1.sock"}))
    async with echoing(f"unix:{tmp_path}/1.sock", "a-01"), running(pool) as gateway:
        async with gateway.channel() as channel:
            await eventually(lambda: answered(channel, "a"))
        for _ in range(2):
            os.kill(before := gateway.envoy_pid, signal.SIGKILL)
            began = time.monotonic()
            async with gateway.channel() as channel:
                await eventually(lambda channel=channel: answered(channel, "a"))  # type: ignore[misc]  # bound now
            assert time.monotonic() - began < 2.5  # 0.25 s on a quiet machine
            assert gateway.envoy_pid != before
        # Both at once: callers keep the address.
        address, before = gateway.address, gateway.envoy_pid
        gateway.kill()
        os.kill(before, signal.SIGKILL)
        await eventually(lambda: ended(before))
        await gateway.start()
        assert gateway.address == address


def ended(pid: int) -> bool:
    """The process is gone, or waits for its parent to notice: an adopted Envoy is no child of the gateway."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_a_killed_gateway_cuts_no_stream_and_its_successor_takes_envoy_over(tmp_path: Path) -> None:
    pool = PoolStandIn()
    pool.put(deployment("a", {"a-01": f"unix:{tmp_path}/1.sock"}))
    async with (
        echoing(f"unix:{tmp_path}/1.sock", "a-01"),
        echoing(f"unix:{tmp_path}/2.sock", "outside"),
        running(pool) as gateway,
        gateway.channel() as channel,
    ):
        await eventually(lambda: answered(channel, "a"))
        registry = agent_registry_pb2_grpc.AgentRegistryStub(gateway.channel(unix=True))
        registration = registry_proto.AgentRegistration(
            agent_id="outside", services=["acme.v1.Chatter"], endpoint=f"unix:{tmp_path}/2.sock"
        )
        leased = await registry.RegisterAgent(
            registry_proto.RegisterAgentRequest(registration=registration), timeout=6
        )
        await eventually(lambda: answered(channel, "outside"))
        stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
        words = [str(n) for n in range(30)]
        stream: Any = stub.StreamText(
            text.StreamTextRequest(prompt=" ".join(words), temperature=0.1), metadata=(("x-uapi-agent", "a"),)
        )
        assert (await stream.read()).text == "0"
        envoy = gateway.envoy_pid
        gateway.kill()
        assert await generate(channel, "x", agent="a") == "a-01: x"
        assert await generate(channel, "x", agent="outside") == "outside: x"
        failures: list[aio.AioRpcError] = []
        done = asyncio.Event()

        async def caller() -> None:
            while not done.is_set():
                try:
                    await generate(channel, "x", agent="a")
                    await generate(channel, "x", agent="outside")
                except aio.AioRpcError as error:
                    failures.append(error)

        calling = asyncio.create_task(caller())
        await gateway.start()
        assert gateway.envoy_pid == envoy
        kept = await registry.KeepAlive(registry_proto.KeepAliveRequest(lease_id=leased.lease_id), timeout=5)
        assert kept.lease_ttl.seconds == 30
        # The successor steers the same Envoy: an agent that comes now is routed.
        pool.put(deployment("new", {"new-01": f"unix:{tmp_path}/1.sock"}))
        await eventually(lambda: answered(channel, "new"))
        done.set()
        await calling
        assert not failures
        assert [(await stream.read()).text for _ in words[1:]] == words[1:]
        assert await stream.read() is aio.EOF
    assert ended(envoy)


async def test_what_the_pool_last_said_is_kept_while_it_is_away(tmp_path: Path, home: Home) -> None:
    address = f"unix:{tmp_path}/1.sock"
    gateway, pool = Gateway(home), PoolStandIn()
    async with echoing(address, "a-01"):
        try:
            async with pool.serving(home):
                pool.put(deployment("a", {"a-01": address}))
                pool.put(deployment("b", {"b-01": address}))
                await gateway.start()
                async with gateway.channel() as channel:
                    await eventually(lambda: answered(channel, "b"))
            async with gateway.channel(unix=True) as channel:
                assert await generate(channel, "x", agent="a") == "a-01: x"
                stub = agent_pool_pb2_grpc.AgentPoolStub(channel)
                with pytest.raises(aio.AioRpcError) as caught:
                    await stub.GetNode(pool_proto.GetNodeRequest(), timeout=5)
                error = status.decode(caught.value)
                assert (type(error), error.reason) == (errors.Unavailable, "POOL_UNAVAILABLE")
                # Another pool, which has lost b.
                successor = PoolStandIn()
                successor.put(deployment("a", {"a-01": address}))
                async with successor.serving(home):
                    await eventually(lambda: _reason(channel, "b", "AGENT_NOT_FOUND"), timeout_s=5)
                    assert await generate(channel, "x", agent="a") == "a-01: x"
        finally:
            gateway.stop()


async def test_calls_in_flight_finish_when_the_gateway_is_told_to_end(tmp_path: Path) -> None:
    pool = PoolStandIn()
    pool.put(deployment("a", {"a-01": f"unix:{tmp_path}/1.sock"}))
    async with echoing(f"unix:{tmp_path}/1.sock", "a-01"), running(pool) as gateway:
        async with gateway.channel() as channel:
            await eventually(lambda: answered(channel, "a"))
            call = asyncio.create_task(generate(channel, "wait 0.4", agent="a"))
            await eventually(lambda: _in_flight(gateway))
            envoy = gateway.envoy_pid
            await asyncio.to_thread(gateway.stop)
            assert await call == "a-01: wait 0.4"
        assert ended(envoy)
        assert not gateway.file.exists()
        assert not (gateway.home.run / "envoy.json").exists()
        await gateway.start()


async def _in_flight(gateway: Gateway) -> bool:
    admin = Admin(gateway.home.envoy_admin_socket)
    return "active: 1" in await admin.get("/stats?filter=cluster.agent/a.upstream_rq_active")


async def test_a_port_in_use_is_one_sentence(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flags, words in (
            (("--grpc-port", port, "--http-port", "0"), "gRPC address 127.0.0.1"),
            (("--grpc-port", "0", "--http-port", port), "HTTP address 127.0.0.1"),
            (("--host", "0.0.0.0"), "without TLS"),
            (("--grpc-port", "70000"), "less than or equal to 65535"),
        ):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "uapi_gateway", *flags,
                env={**os.environ, "UAPI_HOME": str(home.root)}, cwd=ROOT, stderr=subprocess.PIPE,
            )  # fmt: skip
            _, output = await process.communicate()
            assert process.returncode == 1
            assert words in output.decode()
            assert "Traceback" not in output.decode()


async def test_a_second_gateway_of_one_runtime_directory_refuses(home: Home) -> None:
    first = Gateway(home)
    await first.start()
    try:
        done = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "uapi_gateway", "--grpc-port", "0", "--http-port", "0",
            env={**os.environ, "UAPI_HOME": str(home.root)}, cwd=ROOT, stderr=subprocess.PIPE,
        )  # fmt: skip
        _, output = await done.communicate()
        assert (done.returncode, output.decode().count("\n")) == (1, 1)
        assert f"another gateway runs for {home.root}" in output.decode()
        assert psutil.pid_exists(first.envoy_pid)
        assert first.file.exists()
    finally:
        first.stop()
