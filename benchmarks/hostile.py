"""hostile: ten thousand hostile connections at the gateway, and what calls made meanwhile notice of them."""

import json

from benchmarks.platform import Platform, platform
from benchmarks.table import Table
from tests.hostile.siege import Siege, besiege

_SEED, _COUNT, _LANES = 1, 10_000, 64
_MIB = 2**20
# Bars of memory: what Envoy is given (UAPI_GATEWAY_ENVOY_HEAP_BYTES) and its own; what nobody gives the gateway; the
# worker's default cap.
_MOST_MIB = {"envoy": 1024 + 128, "gateway": 256, "pool": 128, "worker": 488}


async def measure() -> Table:
    async with platform() as running:
        siege = await _besiege(running)
    table = Table(
        "hostile",
        f"{_COUNT} hostile connections of {len(siege.ended)} families (tests/hostile/inputs.py, seed {_SEED}), "
        f"{_LANES} at a time, while an agent is called over the same ports; latencies beside those in peace.",
    )
    sent = sum(sum(each.values()) for each in siege.ended.values())
    calm, besieged = siege.calm, siege.besieged
    table.add("hostile connections", sent, "")
    table.add("hostile connections per second", sent / siege.seconds, "")
    table.add("processes that ended", len(siege.lost), "", 0)
    table.add("calls meanwhile", len(besieged.latencies_s), "")
    table.add("streamed messages meanwhile", besieged.streamed, "")
    table.add("calls, streams and pages that failed", len(besieged.failures), "", 0)
    for share, name in ((0.5, "median"), (0.99, "99th percentile"), (0.999, "99.9th percentile")):
        table.add(f"a call, {name}", besieged.millis(share), "ms")
        table.add(f"in peace, {name}", calm.millis(share), "ms")
    for name, bar in _MOST_MIB.items():
        table.add(f"memory of {name}, before", siege.memory.before_bytes[name] / _MIB, "MiB")
        table.add(f"memory of {name}, at most", siege.memory.most_bytes[name] / _MIB, "MiB", bar)
    return table


async def _besiege(running: Platform) -> Siege:
    deployment = await running.run("echo", 1)
    pids = {**running.pids, "worker": deployment.workers[0].pid}
    announced = json.loads(running.home.gateway_file.read_text())
    grpc_port, http_port = (int(announced[key].rpartition(":")[2]) for key in ("grpc_address", "http_address"))
    options = ("--seed", str(_SEED), "--count", str(_COUNT), "--lanes", str(_LANES))
    return await besiege(grpc_port, http_port, pids, *options)
