"""Scaling by reported load and sleep on idle, with real workers, short windows, and a reporter for a gateway."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime.home import Home

from tests.agent_pool import harness
from tests.agent_pool.harness import RunningPool
from tests.agent_pool.scaling.test_sleep import deployment, ready, until

pytestmark = [pytest.mark.integration, pytest.mark.root]

_EVERY_S = 0.05
_SHORT = {
    "AGENT_POOL_DRAIN_DELAY_S": "0",
    "AGENT_POOL_SCALE_INTERVAL_S": "0.05",
    "AGENT_POOL_SCALE_MEAN_S": "0.3",
    "AGENT_POOL_SCALE_CALM_S": "1",
    "AGENT_POOL_SCALE_STEP_S": "0.2",
}


@pytest.fixture
async def quick(short_directory: Path) -> AsyncIterator[RunningPool]:
    """A pool that scales in seconds where others take minutes."""
    running = RunningPool(Home(short_directory), {**os.environ, **_SHORT})
    await running.start()
    try:
        yield running
    finally:
        await running.end()
    assert running.leftovers() == []


class Reporter:
    """Reports as the gateway does: what `in_flight` says, again and again."""

    def __init__(self) -> None:
        self.in_flight: dict[str, int] = {}
        self.begun: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def to(self, pool: RunningPool) -> AsyncIterator[None]:
        call = pool.pool.ReportLoad(self._reports())
        try:
            yield
        finally:
            call.cancel()

    async def _reports(self) -> AsyncIterator[pb.ReportLoadRequest]:
        while True:
            begun, self.begun = self.begun, {}
            loads = [
                pb.AgentLoad(agent=agent, in_flight=self.in_flight.get(agent, 0), begun=begun.get(agent, 0))
                for agent in {*self.in_flight, *begun}
            ]
            yield pb.ReportLoadRequest(loads=loads)
            await asyncio.sleep(_EVERY_S)


def scaling(idle_millis: int = 0, **fields: object) -> pb.Scaling:
    message = pb.Scaling(**fields)  # type: ignore[arg-type]  # fields of the message
    if idle_millis:
        message.idle_timeout.FromMilliseconds(idle_millis)
    return message


async def test_up_with_the_calls_and_down_after_them(quick: RunningPool) -> None:
    reporter = Reporter()
    async with reporter.to(quick):
        started = await quick.run(
            "echo", scaling=scaling(auto_scale=True, min_replicas=1, max_replicas=4, target_concurrency=10)
        )
        assert started.replicas == 1
        reporter.in_flight["echo"] = 29
        grown = await until(quick, lambda now: len(ready(now)) == 3)
        assert grown.calls_in_flight == 29
        assert await harness.generate(grown.workers[-1].address, "new") == "new"
        reporter.in_flight["echo"] = 1000
        await until(quick, lambda now: len(ready(now)) == 4)
        reporter.in_flight["echo"] = 0
        await until(quick, lambda now: now.replicas == 1 and len(now.workers) == 1)
        # The minimum is an operator's: it holds without calls.
        await quick.run("echo", scaling=scaling(min_replicas=2))
        await until(quick, lambda now: len(ready(now)) == 2)


async def test_cpu_is_a_reason_only_while_there_are_calls(quick: RunningPool) -> None:
    body = (
        "async def start(self):\n"
        "        import threading\n"
        "        threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()"
    )
    await quick.build(harness.project("tester", body=body))
    reporter = Reporter()
    async with reporter.to(quick):
        await quick.run(
            "tester:1.0.0",
            # Of all that a worker may use here, it uses all.
            resources=pb.Resources(cpu_millis=20, cpu_limit_millis=100),
            scaling=scaling(auto_scale=True, max_replicas=2, cpu_threshold_percent=50, target_concurrency=1000),
        )
        used = (await quick.worker("tester-01")).usage.cpu_seconds
        await quick.until("tester-01", lambda now: now.usage.cpu_seconds > used + 0.2)
        assert (await deployment(quick, "tester")).replicas == 1
        reporter.in_flight["tester"] = 1
        await until(quick, lambda now: len(ready(now)) == 2, "tester")


async def test_as_many_as_fit_and_the_reason_why_not_more(quick: RunningPool) -> None:
    node = await quick.pool.GetNode(pb.GetNodeRequest())
    reporter = Reporter()
    async with reporter.to(quick):
        reporter.in_flight["echo"] = 100
        await quick.run(
            "echo",
            resources=pb.Resources(cpu_millis=int(node.capacity.cpu_millis / 2.5)),
            scaling=scaling(auto_scale=True, target_concurrency=1),
        )
        stuck = await until(quick, lambda now: len(ready(now)) == 2 and bool(now.status))
        assert stuck.status.startswith("could not scale to ")
        assert "will not fit" in stuck.status


async def test_an_idle_agent_sleeps_while_somebody_reports(quick: RunningPool) -> None:
    reporter = Reporter()
    await quick.run("echo", scaling=scaling(idle_millis=400))
    await quick.run("echo", agent="kept", scaling=scaling(idle_millis=400, min_replicas=1))
    await quick.run("echo", agent="busy", scaling=scaling(idle_millis=400))
    # Nobody reports: nobody sleeps, however long it takes.
    await asyncio.sleep(1.0)
    assert not (await deployment(quick)).asleep
    reporter.in_flight["busy"] = 1
    async with reporter.to(quick):
        await until(quick, lambda now: now.asleep and not now.workers)
        # One that may not sleep any more is woken, and may sleep again.
        request = pb.ScaleAgentRequest(agent="echo", scaling=pb.Scaling(min_replicas=1))
        await quick.pool.ScaleAgent(request, timeout=20)
        await until(quick, lambda now: len(ready(now)) == 1)
        request.scaling.min_replicas = 0
        await quick.pool.ScaleAgent(request, timeout=20)
        await until(quick, lambda now: now.asleep and not now.workers)
        assert ready(await deployment(quick, "kept"))
        assert ready(await deployment(quick, "busy"))
        # Calls that came and went between two reports keep an agent awake, too.
        woken = await quick.pool.WakeAgent(pb.WakeAgentRequest(agent="echo"), timeout=20)
        assert ready(woken.deployment)
        for _ in range(10):
            reporter.begun["echo"] = 1
            await asyncio.sleep(0.1)
            assert not (await deployment(quick)).asleep
        await until(quick, lambda now: now.asleep and not now.workers)
