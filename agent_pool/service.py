"""AgentPool, as the proto has it: reads requests, asks the pool, writes answers."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import agentruntime
from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime._proto.uapi.v1 import agent_pool_pb2_grpc
from agentruntime.calls import SOME_AGENTS_KEY
from grpc import aio

from agent_pool import debugging, messages, requests
from agent_pool.deployment import Deployment
from agent_pool.drivers.base import Enforcement, Stats
from agent_pool.logs import LogStore
from agent_pool.pool import Pool
from agent_pool.scaling.load import AgentLoad

Context = aio.ServicerContext[Any, Any]


class AgentPoolService(agent_pool_pb2_grpc.AgentPoolServicer):
    """Over one pool."""

    def __init__(self, pool: Pool, logs: LogStore) -> None:
        self._pool = pool
        self._logs = logs
        self._started_s = time.monotonic()

    async def RunAgent(self, request: pb.RunAgentRequest, context: Context) -> pb.RunAgentResponse:
        asked = replace(requests.run_request(request), narrow=_of_some_agents(context))
        source = await self._pool.catalog.obtain(asked.image, from_engine=not asked.narrow)
        deployment = await self._pool.run(asked)
        return pb.RunAgentResponse(deployment=messages.deployment(deployment), image_source=source)

    async def StopAgent(self, request: pb.StopAgentRequest, context: Context) -> pb.StopAgentResponse:
        worker_ids = await self._pool.stop(request.name, requests.grace_s(request))
        return pb.StopAgentResponse(worker_ids=worker_ids)

    async def RestartAgent(self, request: pb.RestartAgentRequest, context: Context) -> pb.RestartAgentResponse:
        worker_ids = await self._pool.updates.restart(request.name, requests.grace_s(request))
        return pb.RestartAgentResponse(worker_ids=worker_ids)

    async def UpdateAgent(self, request: pb.UpdateAgentRequest, context: Context) -> pb.UpdateAgentResponse:
        asked = replace(requests.update_request(request), narrow=_of_some_agents(context))
        if asked.image:
            await self._pool.catalog.obtain(asked.image, from_engine=not asked.narrow)
        deployment = await self._pool.updates.update(asked)
        return pb.UpdateAgentResponse(deployment=messages.deployment(deployment))

    async def RollbackAgent(self, request: pb.RollbackAgentRequest, context: Context) -> pb.RollbackAgentResponse:
        number = request.revision if request.HasField("revision") else None
        deployment = await self._pool.updates.roll_back(
            request.agent, number, requests.grace_s(request), narrow=_of_some_agents(context)
        )
        return pb.RollbackAgentResponse(deployment=messages.deployment(deployment))

    async def ScaleAgent(self, request: pb.ScaleAgentRequest, context: Context) -> pb.ScaleAgentResponse:
        deployment = await self._pool.updates.scale(requests.scale_request(request))
        return pb.ScaleAgentResponse(deployment=messages.deployment(deployment))

    async def ListRevisions(self, request: pb.ListRevisionsRequest, context: Context) -> pb.ListRevisionsResponse:
        deployment = self._pool.get(request.agent)
        newest_first = sorted(deployment.revisions.values(), key=lambda spec: -spec.number)
        return pb.ListRevisionsResponse(revisions=[messages.revision(spec, deployment) for spec in newest_first])

    async def WakeAgent(self, request: pb.WakeAgentRequest, context: Context) -> pb.WakeAgentResponse:
        return pb.WakeAgentResponse(deployment=messages.deployment(await self._pool.wake(request.agent)))

    async def ReportLoad(
        self, request_iterator: AsyncIterator[pb.ReportLoadRequest], context: Context
    ) -> pb.ReportLoadResponse:
        async for report in request_iterator:
            loads = [AgentLoad(load.agent, load.in_flight, load.begun, load.queued) for load in report.loads]
            self._pool.book.report(loads, time.monotonic())
            for worker_id in report.ejected_worker_ids:
                self._pool.suspect(worker_id, "Envoy took it out of its rotation")
        return pb.ReportLoadResponse()

    async def DebugWorker(
        self, request_iterator: AsyncIterator[pb.DebugWorkerRequest], context: Context
    ) -> AsyncIterator[pb.DebugWorkerResponse]:
        async for data in debugging.carry(self._pool, request_iterator):
            yield pb.DebugWorkerResponse(data=data)

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Context) -> pb.ListWorkersResponse:
        chosen = [self._pool.get(request.agent)] if request.agent else self._pool.deployments()
        share = request.memory_share
        workers = [worker for each in chosen for worker in (await self._with_usage(each, share=share)).workers]
        return pb.ListWorkersResponse(workers=sorted(workers, key=lambda worker: worker.worker_id))

    async def GetWorker(self, request: pb.GetWorkerRequest, context: Context) -> pb.GetWorkerResponse:
        deployment, worker = self._pool.worker(request.worker_id)
        stats = await asyncio.to_thread(self._pool.driver.stats, worker.key, share=True)
        return pb.GetWorkerResponse(worker=messages.worker(worker, deployment, stats))

    async def GetDeployment(self, request: pb.GetDeploymentRequest, context: Context) -> pb.GetDeploymentResponse:
        found = await self._with_usage(self._pool.get(request.agent))
        now_s = time.monotonic()
        if self._pool.book.fresh(now_s):
            found.calls_in_flight = self._pool.book.calls(request.agent, now_s)
        return pb.GetDeploymentResponse(deployment=found)

    async def ListDeployments(
        self, request: pb.ListDeploymentsRequest, context: Context
    ) -> pb.ListDeploymentsResponse:
        deployments = [await self._with_usage(each) for each in self._pool.deployments()]
        return pb.ListDeploymentsResponse(deployments=deployments)

    async def WatchDeployments(
        self, request: pb.WatchDeploymentsRequest, context: Context
    ) -> AsyncIterator[pb.WatchDeploymentsResponse]:
        with self._pool.changes.subscribe(request.router) as subscription:
            for deployment in self._pool.deployments():
                yield pb.WatchDeploymentsResponse(changed=messages.deployment(deployment))
            yield pb.WatchDeploymentsResponse(synced=True, change=0)
            while True:
                *names, last = await subscription.take()
                for name in names:
                    yield self._news(name)
                yield self._news(last, change=subscription.told)

    def _news(self, name: str, change: int | None = None) -> pb.WatchDeploymentsResponse:
        now = self._pool.find(name)
        if now is None:
            return pb.WatchDeploymentsResponse(removed=name, change=change)
        return pb.WatchDeploymentsResponse(changed=messages.deployment(now), change=change)

    async def AcknowledgeDeployments(
        self, request: pb.AcknowledgeDeploymentsRequest, context: Context
    ) -> pb.AcknowledgeDeploymentsResponse:
        self._pool.changes.acknowledge(request.router, request.change)
        return pb.AcknowledgeDeploymentsResponse()

    async def StreamLogs(
        self, request: pb.StreamLogsRequest, context: Context
    ) -> AsyncIterator[pb.StreamLogsResponse]:
        agent, worker_id = self._logs_of(request.name)

        def names() -> list[str]:
            return [worker_id] if worker_id else self._logs.logs_of(agent)

        tail = request.tail if request.HasField("tail") else None
        since_s = request.since.ToNanoseconds() / 1e9 if request.HasField("since") else None
        lines = self._logs.stream(
            agent, names, level=request.level, tail=tail, follow=request.follow, since_s=since_s
        )
        async for line in lines:
            yield messages.log_line(line)

    async def GetNode(self, request: pb.GetNodeRequest, context: Context) -> pb.GetNodeResponse:
        ledger, driver = self._pool.ledger, self._pool.driver
        gpus = len(ledger.capacity.gpus)
        leased = Enforcement(
            "gpu", gpus > 0, "leased one by one, told by CUDA_VISIBLE_DEVICES" if gpus else "this machine has 0 GPUs"
        )
        return pb.GetNodeResponse(
            capacity=messages.node_resources(ledger.capacity),
            reserved=messages.node_resources(ledger.reserved()),
            enforcement=[
                *(messages.enforcement(entry, "native") for entry in await driver.enforcement("native")),
                *(messages.enforcement(entry, "container") for entry in await driver.enforcement("container")),
                messages.enforcement(leased),
            ],
            pid=os.getpid(),
            version=agentruntime.__version__,
            uptime_seconds=time.monotonic() - self._started_s,
        )

    def _logs_of(self, name: str) -> tuple[str, str]:
        """The agent, and the worker if it is one. Raises NotFound."""
        if self._pool.find(name) is not None or self._logs.logs_of(name):
            return name, ""
        agent = self._logs.agent_of(name)
        if agent is None:
            raise errors.NotFound(f"there is no agent or worker '{name}', and no log of one; `agent ps` lists them")
        return agent, name

    async def _with_usage(self, deployment: Deployment, *, share: bool = False) -> pb.Deployment:
        return messages.deployment(deployment, await asyncio.to_thread(self._stats, list(deployment.workers), share))

    def _stats(self, keys: list[str], share: bool) -> dict[str, Stats]:
        return {key: self._pool.driver.stats(key, share=share) for key in keys}


def _of_some_agents(context: Context) -> bool:
    """Whoever calls may not operate all agents, as the gateway says."""
    return any(key == SOME_AGENTS_KEY for key, _ in context.invocation_metadata() or ())
