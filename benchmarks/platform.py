"""A platform of the benchmarks' own: started by the `agent` command as a user would, in a directory of its own."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from agentruntime._proto.uapi.v1 import agent_pool_pb2, agent_pool_pb2_grpc
from agentruntime.home import Home
from grpc import aio

from uapi_gateway.admin import Admin

AGENT = Path(sys.executable).parent / "agent"
_TIMEOUT_S = 120
_POLL_S = 0.005


@dataclass(frozen=True)
class Platform:
    """A running platform."""

    home: Home
    # "127.0.0.1:port" of Envoy's TCP listener.
    address: str
    pids: dict[str, int]

    def agent(self, *arguments: str) -> Any:
        """Runs the `agent` command with JSON output; returns what it printed, parsed."""
        done = subprocess.run(
            [str(AGENT), *arguments, "--output", "json"],
            env={**os.environ, "UAPI_HOME": str(self.home.root)},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"agent {' '.join(arguments)} failed: {done.stderr}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    # The generated stub's asynchronous form exists for type checkers only, hence the name in quotes.
    @asynccontextmanager
    async def pool(self) -> AsyncIterator["agent_pool_pb2_grpc.AgentPoolAsyncStub"]:
        """The pool, through the gateway."""
        async with aio.insecure_channel(f"unix:{self.home.gateway_socket}") as channel:
            yield agent_pool_pb2_grpc.AgentPoolStub(channel)

    async def run(self, agent: str, replicas: int) -> agent_pool_pb2.Deployment:
        """Tells the pool, at its own socket, how many workers are wanted, and waits until they are ready."""
        async with aio.insecure_channel(f"unix:{self.home.pool_socket}") as channel:
            stub = agent_pool_pb2_grpc.AgentPoolStub(channel)
            image = agent if ":" in agent else f"{agent}:latest"
            request = agent_pool_pb2.RunAgentRequest(image=image, replicas=replicas)
            deployment = (await stub.RunAgent(request, timeout=_TIMEOUT_S)).deployment
        await self.routed(deployment.agent)
        return deployment

    async def routed(self, agent: str) -> None:
        """Waits until Envoy knows an agent, which is some milliseconds after the pool has said that it runs."""
        admin = Admin(self.home.envoy_admin_socket)
        async with asyncio.timeout(_TIMEOUT_S):
            while f"agent/{agent}::" not in await admin.get("/clusters"):
                await asyncio.sleep(_POLL_S)

    def cpu_seconds(self, *names: str) -> float:
        """CPU time that the platform's own processes have used."""
        return sum(cpu_seconds(self.pids[name]) for name in names)


@asynccontextmanager
async def platform(**variables: str) -> AsyncIterator[Platform]:
    """Starts a platform on free ports, and ends it. Callers need no credential; without other `variables` agents run
    native."""
    with tempfile.TemporaryDirectory(prefix="uapi-bench-") as directory:
        home = Home(Path(directory))
        environment = {**os.environ, "AGENT_RUNTIME_MODE": "native", **variables, "UAPI_HOME": directory}
        up = [str(AGENT), "up", "--grpc-port", "0", "--http-port", "0", "--anonymous", "call", "--output", "json"]
        await asyncio.to_thread(
            subprocess.run, up, env=environment, check=True, timeout=_TIMEOUT_S, stdout=subprocess.DEVNULL
        )
        try:
            gateway = json.loads((home.run / "gateway.json").read_text())
            bare = Platform(home, gateway["grpc_address"], {})
            status = await asyncio.to_thread(bare.agent, "status")
            pids = {process["name"]: int(process["pid"]) for process in status["processes"]}
            yield Platform(home, gateway["grpc_address"], pids)
        finally:
            down = [str(AGENT), "down"]
            await asyncio.to_thread(
                subprocess.run, down, env=environment, check=True, timeout=_TIMEOUT_S, stdout=subprocess.DEVNULL
            )


def cpu_seconds(pid: int) -> float:
    """CPU time of a process with all its threads, to the nanosecond where the kernel keeps schedstat.

    /proc/PID/task/*/schedstat: the first figure is time on a CPU in ns (Documentation/scheduler/sched-stats.rst).
    """
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except FileNotFoundError:
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
