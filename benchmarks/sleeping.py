"""sleeping: what a thousand registered agents cost while they sleep, and what waking them takes."""

import asyncio
import statistics
import time

from agentruntime._proto.uapi.v1 import agent_pool_pb2
from grpc import aio

from benchmarks import presence
from benchmarks.platform import Platform, platform
from benchmarks.sleepers import Sleepers
from benchmarks.table import Table

_AGENTS = 1000
_TIMEOUT_S = 60
# Templates that the pool keeps of agents that sleep (docs/lifecycle.md); an agent is cold after so many others.
_WARM = 16
_PAIRS = 10
# For what goes on after the last registration: publishing, saving.
_SETTLE_S = 2.0
_MB = 1e6


async def measure() -> Table:
    table = Table(
        "sleeping",
        f"{_AGENTS} registered echo agents, asleep. Memory is PSS, of all processes of the platform. Registration: "
        f"RunAgent with 0 replicas, through the gateway. Waking: a call to its answer, {_PAIRS} agents, each first "
        "with its template let go, then with it; each time no other process of it is there, by /proc.",
    )
    async with platform() as running, running.pool() as pool, aio.insecure_channel(running.address) as channel:
        before = _pss(running)
        times: list[float] = []
        for number in range(_AGENTS):
            request = agent_pool_pb2.RunAgentRequest(image="echo:latest", agent=_name(number), replicas=0)
            started = time.perf_counter()
            await pool.RunAgent(request, timeout=_TIMEOUT_S)
            times.append((time.perf_counter() - started) * 1000)
        await running.routed(_name(_AGENTS - 1))
        await asyncio.sleep(_SETTLE_S)
        left = {number for number in (0, 1, _AGENTS - 1) if presence.of_agent(running, _name(number)).forked}
        if left:
            raise SystemExit(f"agents {left} are asleep and have processes")
        table.add("memory of the whole platform", _pss(running)["all"], "MB", 400)
        for name, size in _pss(running).items():
            if name != "all":
                table.add(f"of it {name}", size, "MB")
        table.add("memory without agents", before["all"], "MB")
        table.add("registration of the thousandth", times[-1], "ms")
        table.add("registration of the last 50, p50", statistics.median(times[-50:]), "ms")
        table.add("registration of the first 50, p50", statistics.median(times[:50]), "ms")
        cold, warm = await _wake(Sleepers(running, pool, channel))
        table.add("wake, template let go, p50", statistics.median(cold), "ms")
        table.add("wake, template warm, p50", statistics.median(warm), "ms")
    return table


async def _wake(sleepers: Sleepers) -> tuple[list[float], list[float]]:
    """Milliseconds of waking agents whose template was let go, and of the same ones with it."""
    for number in range(_PAIRS + _WARM):
        await sleepers.call(_name(number))
        await sleepers.put_to_sleep(_name(number))
    cold: list[float] = []
    warm: list[float] = []
    for number in range(_PAIRS):
        cold.append(await sleepers.wake(_name(number), template=False))
        await sleepers.put_to_sleep(_name(number))
        warm.append(await sleepers.wake(_name(number), template=True))
        await sleepers.put_to_sleep(_name(number))
    return cold, warm


def _name(number: int) -> str:
    return f"sleeper-{number:04d}"


def _pss(running: Platform) -> dict[str, float]:
    """Megabytes of the platform's processes, by what they are, and of all."""
    names = {pid: name for name, pid in running.pids.items()}
    sizes: dict[str, float] = {"all": 0.0}
    for process in presence.everything(running):
        name = names.get(process.pid, "templates")
        size = presence.smaps(process.pid)["Pss"] / _MB
        sizes[name] = sizes.get(name, 0.0) + size
        sizes["all"] += size
    return sizes
