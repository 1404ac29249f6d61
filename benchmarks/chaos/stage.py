"""The course of a run: which phase lasts how long, what is killed in it, and when each is back."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from agentruntime._proto.uapi.v1 import agent_pool_pb2, agent_pool_pb2_grpc
from agentruntime.supervisor import accepts
from grpc import aio

from benchmarks.chaos import victims
from benchmarks.chaos.outcome import Kill, Phase
from benchmarks.chaos.readiness import Readiness
from benchmarks.chaos.victims import Process
from benchmarks.platform import Platform

# Of a phase, before its first kill.
_LEAD_S = 0.3
_POLL_S = 0.01
_BACK_TIMEOUT_S = 15.0
_UPDATE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Plan:
    """Seconds of each phase, at least: none ends before what was killed in it is back, or given up."""

    calm_s: float
    workers_s: float
    # Between the kills of workers.
    kill_every_s: float
    # Of the phases of the pool, the gateway and the template, each.
    each_s: float
    # Envoy's: its clients wait a second and more before they connect again.
    envoy_s: float
    update_s: float
    # That a worker's streams have when it is replaced.
    grace_s: float
    replicas: int = 4


FULL = Plan(calm_s=4, workers_s=24, kill_every_s=2, each_s=5.5, envoy_s=5.5, update_s=10, grace_s=2)
SHORT = Plan(calm_s=0.5, workers_s=2, kill_every_s=1, each_s=1, envoy_s=4, update_s=2, grace_s=0.3)
PHASES = ("calm", "workers", "pool", "gateway", "envoy", "template", "update")


class Stage:
    """Plays the phases, and keeps what happened."""

    def __init__(self, platform: Platform, readiness: Readiness, plan: Plan, update_to: str) -> None:
        self._home = platform.home
        self._readiness = readiness
        self._plan = plan
        self._update_to = update_to
        self.phases: list[Phase] = []
        self.kills: list[Kill] = []
        self.lost_workers = 0

    async def play(self, names: tuple[str, ...]) -> None:
        """One phase after the other."""
        plan = self._plan
        phases: dict[str, tuple[float, Callable[[], Awaitable[None]]]] = {
            "calm": (plan.calm_s, self._nothing),
            "workers": (plan.workers_s, self._kill_workers),
            "pool": (plan.each_s, self._kill_pool),
            "gateway": (plan.each_s, self._kill_gateway),
            "envoy": (plan.envoy_s, self._kill_envoy),
            "template": (plan.each_s, self._kill_template),
            "update": (plan.update_s, self._update),
        }
        for name in names:
            seconds, act = phases[name]
            began_at = time.monotonic()
            await asyncio.sleep(_LEAD_S)
            await act()
            await asyncio.sleep(max(0.0, began_at + seconds - time.monotonic()))
            self.phases.append(Phase(name, began_at, time.monotonic()))

    async def _nothing(self) -> None:
        pass

    async def _kill(self, what: str, victim: Process, back: Callable[[], Awaitable[float]]) -> None:
        """Kills, and waits until what was killed is back."""
        at, gone_at = await victim.kill()
        place = len(self.kills)
        self.kills.append(Kill(what, victim.pid, at, gone_at))
        try:
            back_at = await asyncio.wait_for(back(), _BACK_TIMEOUT_S)
        except TimeoutError:
            return
        self.kills[place] = replace(self.kills[place], back_at=back_at)

    async def _kill_worker(self) -> None:
        # The oldest first: each in its turn.
        ready = sorted(self._readiness.ready(), key=lambda process: (process.started, process.pid))
        victim = ready[0]
        await self._kill("worker", victim, lambda: self._readiness.until(self._plan.replicas, victim))

    async def _kill_workers(self) -> None:
        began_at = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                at = began_at + number * self._plan.kill_every_s
                if at + self._plan.kill_every_s > began_at + self._plan.workers_s:
                    break
                await asyncio.sleep(max(0.0, at - time.monotonic()))
                group.create_task(self._kill_worker())

    async def _kill_pool(self) -> None:
        victim, before = victims.child(self._home, "pool"), self._readiness.ready()
        await self._kill("pool", victim, lambda: self._answering_pool(victim.pid))
        await asyncio.wait_for(self._readiness.until(self._plan.replicas), _BACK_TIMEOUT_S)
        self.lost_workers = len(set(before) - set(self._readiness.ready()))

    async def _answering_pool(self, other_than: int) -> float:
        while True:
            async with aio.insecure_channel(f"unix:{self._home.pool_socket}") as channel:
                try:
                    stub = agent_pool_pb2_grpc.AgentPoolStub(channel)
                    node = await stub.GetNode(agent_pool_pb2.GetNodeRequest(), timeout=1)
                    if node.pid != other_than:
                        return time.monotonic()
                except aio.AioRpcError:
                    await asyncio.sleep(_POLL_S)

    async def _kill_gateway(self) -> None:
        victim = victims.child(self._home, "gateway")

        def back() -> bool:
            # It writes the file once it answers.
            return victims.gateway(self._home) != victim and accepts(self._home.control_socket)

        await self._kill("gateway", victim, lambda: _when(back))

    async def _kill_envoy(self) -> None:
        victim = victims.envoy(self._home)

        def back() -> bool:
            return victims.envoy(self._home) != victim and accepts(self._home.gateway_socket)

        await self._kill("envoy", victim, lambda: _when(back))

    async def _kill_template(self) -> None:
        """With a worker at once after it: only the next start needs a template."""
        worker = self._readiness.workers[self._readiness.ready()[0].pid]
        victim = victims.template(worker)
        await self._kill("template", victim, self._kill_worker_and_wait)

    async def _kill_worker_and_wait(self) -> float:
        await self._kill_worker()
        return await self._readiness.until(self._plan.replicas)

    async def _update(self) -> None:
        before = set(self._readiness.workers)
        request = agent_pool_pb2.UpdateAgentRequest(name=self._readiness.agent, image=self._update_to)
        request.grace_period.FromMilliseconds(int(self._plan.grace_s * 1000))
        async with aio.insecure_channel(f"unix:{self._home.gateway_socket}") as channel:
            stub = agent_pool_pb2_grpc.AgentPoolStub(channel)
            try:
                updated = (await stub.UpdateAgent(request, timeout=_UPDATE_TIMEOUT_S)).deployment
            except aio.AioRpcError as error:
                raise SystemExit(f"the update failed: {error.code().name} {error.details()}") from error
        pids = {worker.pid for worker in updated.workers}
        if updated.image != self._update_to or len(pids) != self._plan.replicas or pids & before:
            raise SystemExit(f"the update left other workers than it should: {updated}")


async def _when(condition: Callable[[], bool]) -> float:
    """When a condition is first met; one that cannot be looked up is not."""
    while True:
        with contextlib.suppress(LookupError, OSError, ValueError):
            if condition():
                return time.monotonic()
        await asyncio.sleep(_POLL_S)
