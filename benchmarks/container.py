"""container: an agent in a container, beside plain `docker run` of the same image and the same agent native."""

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import docker
import grpc
from agentruntime._proto.uapi.v1 import (
    agent_pool_pb2,
    agent_pool_pb2_grpc,
    text_generation_pb2,
    text_generation_pb2_grpc,
)
from grpc import aio

from benchmarks.load import Load, Target
from benchmarks.platform import Platform, platform
from benchmarks.table import Table
from tests import base_image, engine

_STARTS = 20
_PAIRS = 15
_WARM_UP = 20
_CALLS, _IN_FLIGHT = 2000, 32
_MICRO = 1e6
_TIMEOUT_S = 300
_ANSWER_S = 30
# What may take part in a call between its caller and the worker.
_HOP = ("envoy", "gateway", "pool")
_PORT = 50051
_NATIVE, _CONTAINER = "echo", "echo-container"


async def measure() -> Table:
    table = Table(
        "container",
        f"Milliseconds from the request to start one more echo worker in a container to its first answer, {_STARTS} "
        "starts, each followed by a plain `docker run` of the same image; then CPU time of the hop per unary call "
        f"({_IN_FLIGHT} in flight) to that agent and to the same one native, over {_PAIRS} interleaved pairs of "
        f"{_CALLS} calls, a connection each.",
    )
    async with _platform() as (running, client):
        async with aio.insecure_channel(f"unix:{running.home.pool_socket}") as channel:
            pool = agent_pool_pb2_grpc.AgentPoolStub(channel)
            for agent, mode in (
                (_NATIVE, agent_pool_pb2.RUNTIME_MODE_NATIVE),
                (_CONTAINER, agent_pool_pb2.RUNTIME_MODE_CONTAINER),
            ):
                settings = agent_pool_pb2.AgentSettings(mode=mode)
                request = agent_pool_pb2.RunAgentRequest(image="echo:latest", agent=agent, settings=settings)
                deployment = (await pool.RunAgent(request, timeout=_TIMEOUT_S)).deployment
                await running.routed(agent)
            [worker] = deployment.workers
            image = client.containers.get(worker.container_id).image
            starts = [(await _start_worker(pool), await _start_plain(client, image)) for _ in range(_STARTS)]
        hops = [(await _hop(running, _CONTAINER), await _hop(running, _NATIVE)) for _ in range(_PAIRS)]
    ours, plain = zip(*starts, strict=True)
    table.add("start: worker / docker run, median of pairs", statistics.median(a / b for a, b in starts), "×", 1.3)
    table.add("start: worker in a container, p50", statistics.median(ours) * 1000, "ms")
    table.add("start: docker run, p50", statistics.median(plain) * 1000, "ms")
    contained, native = zip(*hops, strict=True)
    table.add("hop: container / native, median of pairs", statistics.median(a / b for a, b in hops), "×", 1.1)
    table.add("hop: container", statistics.median(contained) * _MICRO, "µs CPU")
    table.add("hop: native", statistics.median(native) * _MICRO, "µs CPU")
    return table


@contextlib.asynccontextmanager
async def _platform() -> AsyncIterator[tuple[Platform, docker.DockerClient]]:
    """A platform with the tests' container engine and base image."""
    with contextlib.ExitStack() as stack:
        try:
            address = stack.enter_context(engine.address())
        except engine.NoEngineError as error:
            raise SystemExit(f"no container engine: {error}") from None
        client = stack.enter_context(contextlib.closing(docker.DockerClient(base_url=address)))
        environment = engine.Engine(address, base_image.ensure(client)).environment
        async with platform(**environment) as running:
            yield running, client


async def _start_worker(pool: "agent_pool_pb2_grpc.AgentPoolAsyncStub") -> float:
    started = time.perf_counter()
    request = agent_pool_pb2.RunAgentRequest(image="echo:latest", agent=_CONTAINER, replicas=2)
    response = await pool.RunAgent(request, timeout=_TIMEOUT_S)
    newest = max(response.deployment.workers, key=lambda worker: worker.started_at.ToNanoseconds())
    await _answer(newest.address)
    elapsed = time.perf_counter() - started
    await pool.StopAgent(agent_pool_pb2.StopAgentRequest(name=newest.worker_id), timeout=_TIMEOUT_S)
    return elapsed


async def _start_plain(client: docker.DockerClient, image: Any) -> float:
    started = time.perf_counter()
    container = await asyncio.to_thread(client.containers.run, image, detach=True)
    try:
        await asyncio.to_thread(container.reload)
        address = container.attrs["NetworkSettings"]["IPAddress"]
        await _answer(f"{address}:{_PORT}")
        return time.perf_counter() - started
    finally:
        await asyncio.to_thread(container.remove, force=True)


async def _answer(address: str) -> None:
    options = (("grpc.initial_reconnect_backoff_ms", 10), ("grpc.max_reconnect_backoff_ms", 10))
    async with aio.insecure_channel(address, options=options) as channel:
        stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
        request = text_generation_pb2.GenerateTextRequest(prompt="first")
        try:
            response = await stub.GenerateText(request, timeout=_ANSWER_S, wait_for_ready=True)
        except grpc.RpcError as error:
            raise SystemExit(f"no first answer from {address}: {error.code()}") from error
        if response.text != "first":
            raise SystemExit(f"a wrong answer: {response.text!r}")


async def _hop(running: Platform, agent: str) -> float:
    """CPU seconds per call of what stands between a caller and an agent's worker."""
    load = Load(Target(running.address, agent))
    try:
        await load.unary(_WARM_UP, 1)
        before = running.cpu_seconds(*_HOP)
        await load.unary(_CALLS, _IN_FLIGHT)
        return (running.cpu_seconds(*_HOP) - before) / _CALLS
    finally:
        await load.close()
