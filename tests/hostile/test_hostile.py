"""A part of the hostile inputs that `make bench ARGS=hostile` sends in full, and memory that callers would keep."""

import json
from collections import Counter

import pytest

from benchmarks.platform import Platform, platform
from tests.hostile import inputs
from tests.hostile.siege import Siege, besiege

pytestmark = pytest.mark.integration
_MIB = 2**20
_HEAP_MIB = 256
# The worker's default cap is 512 MB; a request is there several times over while it is handled.
_MOST_MIB = {"envoy": _HEAP_MIB + 128, "gateway": 256, "pool": 128, "worker": 400}


async def test_hostile_connections_harm_nobody() -> None:
    async with platform(UAPI_GATEWAY_ENVOY_HEAP_BYTES=str(_HEAP_MIB * _MIB)) as running:
        worker = (await running.run("echo", 1)).workers[0]
        pids = {**running.pids, "worker": worker.pid}
        _unharmed(await _siege(running, pids, "--seed", "7", "--count", "400", "--lanes", "32"), 400)
        # Half a gigabyte, of which Envoy may have half.
        _unharmed(await _siege(running, pids, "--pinning", "--count", "16", "--lanes", "16"), 16)


async def _siege(running: Platform, pids: dict[str, int], *options: str) -> Siege:
    announced = json.loads(running.home.gateway_file.read_text())
    grpc_port, http_port = (int(announced[key].rpartition(":")[2]) for key in ("grpc_address", "http_address"))
    return await besiege(grpc_port, http_port, pids, *options)


def _unharmed(siege: Siege, count: int) -> None:
    ended = sum(siege.ended.values(), Counter())
    assert ended.total() == count
    assert siege.besieged.failures == []
    assert siege.besieged.latencies_s
    assert siege.besieged.pages
    assert siege.lost == []
    most_mib = {name: siege.memory.most_bytes[name] / _MIB for name in _MOST_MIB}
    assert {name: mib for name, mib in most_mib.items() if mib > _MOST_MIB[name]} == {}


def test_the_same_seed_gives_the_same_inputs() -> None:
    assert list(inputs.inputs(3, 60)) == list(inputs.inputs(3, 60))
    assert list(inputs.inputs(3, 60)) != list(inputs.inputs(4, 60))
    families = {each.family for each in inputs.inputs(3, 60)}
    assert len(families) == len(set(inputs.FAMILIES))
