"""wake: from a call on a sleeping agent to its answer."""

import statistics

from grpc import aio

from benchmarks.platform import platform
from benchmarks.sleepers import Sleepers
from benchmarks.table import Table

_WAKES = 50


async def measure() -> Table:
    waking: list[float] = []
    awake: list[float] = []
    async with platform() as running:
        await running.run("echo", 1)
        async with running.pool() as pool, aio.insecure_channel(running.address) as channel:
            sleepers = Sleepers(running, pool, channel)
            await sleepers.call("echo")
            for _ in range(_WAKES):
                await sleepers.put_to_sleep("echo")
                waking.append(await sleepers.wake("echo", template=True))
                awake.append(await sleepers.call("echo"))
    table = Table(
        "wake",
        f"From a call on a sleeping echo agent to its answer, through the gateway, {_WAKES} times. Before each, no "
        "worker and no spare of it is there, by /proc; its template is.",
    )
    table.add("wake, p50", statistics.median(waking), "ms", 60)
    table.add("wake, p90", statistics.quantiles(waking, n=10)[8], "ms")
    table.add("wake, slowest", max(waking), "ms")
    table.add("the next call, p50", statistics.median(awake), "ms")
    return table
