"""throughput: CPU per streamed token with and without --optimize-throughput."""

import statistics

from agentruntime._proto.uapi.v1 import agent_pool_pb2

from benchmarks.load import Load, Target
from benchmarks.platform import Platform, cpu_seconds, platform
from benchmarks.table import Table

_PAIRS = 15
_STREAMS, _TOKENS, _IN_FLIGHT = 16, 500, 4
_TIMEOUT_S = 60
_MICRO = 1e6
_ON_THE_WAY = ("envoy", "gateway")
# Names of the agent, and whether it optimizes throughput.
_AGENTS = {"prompt": False, "gathering": True}


async def measure() -> Table:
    cpu: dict[str, list[float]] = {name: [] for name in _AGENTS}
    wall: dict[str, list[float]] = {name: [] for name in cpu}
    async with platform() as running:
        workers = {name: await _run(running, name) for name in _AGENTS}
        for _ in range(_PAIRS):
            for name, optimize in _AGENTS.items():
                load = Load(Target(running.address, name))
                try:
                    await load.streams(1, _TOKENS, 1, gathered=optimize)
                    before = cpu_seconds(workers[name]) + running.cpu_seconds(*_ON_THE_WAY)
                    seconds = await load.streams(_STREAMS, _TOKENS, _IN_FLIGHT, gathered=optimize)
                    used = cpu_seconds(workers[name]) + running.cpu_seconds(*_ON_THE_WAY) - before
                finally:
                    await load.close()
                cpu[name].append(used / (_STREAMS * _TOKENS) * _MICRO)
                wall[name].append(seconds / (_STREAMS * _TOKENS) * _MICRO)
    table = Table(
        "throughput",
        f"Streams of {_TOKENS} tokens that an echo agent makes at once, {_IN_FLIGHT} at a time, with and without "
        f"--optimize-throughput. CPU of the worker, Envoy and the gateway; medians of {_PAIRS} interleaved pairs of "
        f"{_STREAMS * _TOKENS} tokens, every answer checked.",
    )
    ratio = statistics.median(map(float.__truediv__, cpu["gathering"], cpu["prompt"]))
    table.add("CPU per token, with / without, median of pairs", ratio, "×", 1)
    for name, optimize in _AGENTS.items():
        said = "with" if optimize else "without"
        table.add(f"{said}: CPU per token", statistics.median(cpu[name]), "µs")
        table.add(f"{said}: wall per token", statistics.median(wall[name]), "µs")
    return table


async def _run(running: Platform, agent: str) -> int:
    """Runs the echo agent; the pid of its worker."""
    settings = agent_pool_pb2.AgentSettings(serving=agent_pool_pb2.Serving(optimize_throughput=_AGENTS[agent]))
    request = agent_pool_pb2.RunAgentRequest(image="echo:latest", agent=agent, settings=settings)
    async with running.pool() as pool:
        deployment = (await pool.RunAgent(request, timeout=_TIMEOUT_S)).deployment
    return deployment.workers[0].pid
