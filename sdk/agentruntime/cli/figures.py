"""What an agent's workers use, as `agent metrics` and `agent monitor` show it: asked of the pool, summed, as JSON.

The fields of the dataclasses are the names in JSON, so units are spelled out in them.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_pb2
from agentruntime.cli.ps import state_of
from agentruntime.client.sync import Client

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Gpu:
    """One leased GPU."""

    index: int
    utilization_percent: float
    memory_bytes: int


@dataclass(frozen=True)
class Use:
    """What one worker uses, or several together. None: it has no such limit or network, or nobody asked."""

    # Of one core.
    cpu_percent: float = 0.0
    cpu_seconds: float = 0.0
    cpu_limit_cores: float | None = None
    throttled_seconds: float = 0.0
    throttled_periods: int = 0
    memory_bytes: int = 0
    memory_peak_bytes: int = 0
    memory_limit_bytes: int | None = None
    memory_share_bytes: int | None = None
    pids: int = 0
    pids_limit: int | None = None
    network_received_bytes: int | None = None
    network_sent_bytes: int | None = None
    network_received_bytes_per_second: float | None = None
    network_sent_bytes_per_second: float | None = None
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True)
class Figures:
    """One worker."""

    worker_id: str
    state: str
    # 0 where it has no process; then it uses nothing.
    pid: int
    uptime_seconds: float
    restarts: int
    crash_loop: bool
    lag_seconds: float
    use: Use

    def data(self) -> dict[str, Any]:
        """For JSON."""
        fields = asdict(self)
        use = fields.pop("use")
        return {**fields, **use}


@dataclass(frozen=True)
class Target:
    """An agent, or one of its workers."""

    agent: str
    worker_id: str = ""

    @property
    def name(self) -> str:
        return self.worker_id or self.agent


@dataclass(frozen=True)
class Snapshot:
    """An agent's workers at one moment; only one of them where that was named."""

    target: Target
    # Since the epoch.
    at_s: float
    # Of the agent: RUNNING, PENDING, ASLEEP, STOPPED.
    state: str
    status: str
    # Of the agent; None while the gateway does not report it.
    calls_in_flight: int | None
    workers: tuple[Figures, ...]

    @property
    def total(self) -> Use:
        return total([worker.use for worker in self.workers if worker.pid])

    def data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "time": datetime.fromtimestamp(self.at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "agent": self.target.agent,
            "state": self.state,
            "calls_in_flight": self.calls_in_flight,
            "workers": [worker.data() for worker in self.workers],
            "total": asdict(self.total),
        }

    def since(self, before: "Snapshot | None") -> "Snapshot":
        """The same with rates since `before`, instead of the pool's of the last few seconds, where that is known."""
        if before is None or self.at_s <= before.at_s:
            return self
        known = {(each.worker_id, each.pid): each.use for each in before.workers if each.pid}
        passed_s = self.at_s - before.at_s
        return replace(
            self,
            workers=tuple(
                replace(each, use=_since(each.use, known[each.worker_id, each.pid], passed_s))
                if (each.worker_id, each.pid) in known
                else each
                for each in self.workers
            ),
        )


def total(of: Sequence[Use]) -> Use:
    """The sum; a limit only where each has one. The peaks need not have been at the same time."""
    return Use(
        cpu_percent=sum(each.cpu_percent for each in of),
        cpu_seconds=sum(each.cpu_seconds for each in of),
        cpu_limit_cores=_limit([each.cpu_limit_cores for each in of]),
        throttled_seconds=sum(each.throttled_seconds for each in of),
        throttled_periods=sum(each.throttled_periods for each in of),
        memory_bytes=sum(each.memory_bytes for each in of),
        memory_peak_bytes=sum(each.memory_peak_bytes for each in of),
        memory_limit_bytes=_limit([each.memory_limit_bytes for each in of]),
        memory_share_bytes=_sum([each.memory_share_bytes for each in of]),
        pids=sum(each.pids for each in of),
        pids_limit=_limit([each.pids_limit for each in of]),
        network_received_bytes=_sum([each.network_received_bytes for each in of]),
        network_sent_bytes=_sum([each.network_sent_bytes for each in of]),
        network_received_bytes_per_second=_sum([each.network_received_bytes_per_second for each in of]),
        network_sent_bytes_per_second=_sum([each.network_sent_bytes_per_second for each in of]),
        gpus=tuple(gpu for each in of for gpu in each.gpus),
    )


def find(client: Client, name: str) -> Target:
    """What a name means.

    Raises:
        NotFound: there is no such agent or worker; says what there is.
        FailedPrecondition: the agent is registered from outside.
    """
    if _deployment(client, name) is not None:
        return Target(name)
    try:
        return Target(client.pool.GetWorker(pool_pb2.GetWorkerRequest(worker_id=name)).worker.agent, name)
    except errors.NotFound:
        pass
    for each in client.registry.ListAgents(registry_pb2.ListAgentsRequest()).agents:
        if each.agent_id == name:
            raise errors.FailedPrecondition(
                f"agent '{name}' is registered from outside; only workers of this platform can be measured"
            )
    agent = name.rpartition("-")[0]
    near = _deployment(client, agent) if agent else None
    if near is None:
        raise errors.NotFound(f"there is no agent or worker '{name}'; `agent ps` lists them")
    has = ", ".join(worker.worker_id for worker in near.workers)
    why = f"it has {has}" if has else nothing_of(agent, state_of(near), near.status)
    raise errors.NotFound(f"agent '{agent}' has no worker '{name}'; {why}")


def nothing_of(agent: str, state: str, status: str) -> str:
    """Why an agent has no worker, and what would give it one, in a sentence."""
    news = f": {status}" if status else ""
    if state == "ASLEEP":
        return f"{agent} sleeps and has no process; the next call wakes it{news}"
    if state == "STOPPED":
        return f"{agent} is stopped and has no process; `agent run` starts it{news}"
    return f"{agent} has no worker yet{news}"


def look(client: Client, target: Target, *, share: bool = False, timeout_s: float | None = None) -> Snapshot:
    """How things are now.

    Args:
        client: a client of the platform.
        target: which workers.
        share: whether to ask for shares of memory too, which takes the pool some milliseconds for each process.
        timeout_s: of each of the two calls; None for the client's.

    Raises:
        NotFound: the agent is gone.
    """
    request = pool_pb2.GetDeploymentRequest(agent=target.agent)
    found = client.pool.GetDeployment(request, timeout=timeout_s).deployment
    workers: Iterable[pool_pb2.Worker] = found.workers
    if share:
        asked = pool_pb2.ListWorkersRequest(agent=target.agent, memory_share=True)
        workers = client.pool.ListWorkers(asked, timeout=timeout_s).workers
    now_s = time.time()
    return Snapshot(
        target=target,
        at_s=now_s,
        state=state_of(found),
        status=found.status,
        calls_in_flight=found.calls_in_flight if found.HasField("calls_in_flight") else None,
        workers=tuple(
            figures(each, now_s, share=share) for each in workers if target.worker_id in ("", each.worker_id)
        ),
    )


def figures(of: pool_pb2.Worker, now_s: float, *, share: bool) -> Figures:
    """One worker's, out of the pool's message."""
    started_s = of.started_at.ToNanoseconds() / 1e9
    return Figures(
        worker_id=of.worker_id,
        state=pool_pb2.WorkerState.Name(of.state).removeprefix("WORKER_STATE_"),
        pid=of.pid,
        uptime_seconds=round(max(0.0, now_s - started_s), 3) if of.pid and started_s else 0.0,
        restarts=of.restarts,
        crash_loop=of.crash_loop,
        lag_seconds=of.lag_seconds,
        use=_use(of, share=share),
    )


def _use(of: pool_pb2.Worker, *, share: bool) -> Use:
    usage, resources = of.usage, of.resources
    networked = usage.HasField("network_received_bytes")
    return Use(
        cpu_percent=usage.cpu_percent,
        cpu_seconds=usage.cpu_seconds,
        cpu_limit_cores=resources.cpu_limit_millis / 1000 if resources.cpu_limit_millis else None,
        throttled_seconds=usage.throttled_seconds,
        throttled_periods=usage.throttled_periods,
        memory_bytes=usage.memory_bytes,
        memory_peak_bytes=usage.memory_peak_bytes,
        memory_limit_bytes=resources.memory_limit_bytes or None,
        memory_share_bytes=usage.memory_pss_bytes if share else None,
        pids=usage.pids,
        pids_limit=resources.pids_limit or None,
        network_received_bytes=usage.network_received_bytes if networked else None,
        network_sent_bytes=usage.network_sent_bytes if networked else None,
        network_received_bytes_per_second=usage.network_received_rate if networked else None,
        network_sent_bytes_per_second=usage.network_sent_rate if networked else None,
        gpus=tuple(Gpu(gpu.index, gpu.utilization_percent, gpu.memory_bytes) for gpu in usage.gpus),
    )


def _since(now: Use, before: Use, passed_s: float) -> Use:
    return replace(
        now,
        cpu_percent=100 * max(0.0, now.cpu_seconds - before.cpu_seconds) / passed_s,
        network_received_bytes_per_second=_rate(now.network_received_bytes, before.network_received_bytes, passed_s),
        network_sent_bytes_per_second=_rate(now.network_sent_bytes, before.network_sent_bytes, passed_s),
    )


def _rate(now: int | None, before: int | None, passed_s: float) -> float | None:
    return None if now is None else max(0, now - (before or 0)) / passed_s


def _limit(of: Sequence[Number | None]) -> Number | None:
    known = [each for each in of if each is not None]
    return sum(known) if known and len(known) == len(of) else None


def _sum(of: Sequence[Number | None]) -> Number | None:
    known = [each for each in of if each is not None]
    return sum(known) if known else None


def _deployment(client: Client, agent: str) -> pool_pb2.Deployment | None:
    try:
        return client.pool.GetDeployment(pool_pb2.GetDeploymentRequest(agent=agent)).deployment
    except errors.NotFound:
        return None
