"""The health documents: of the platform, and of each agent, in the form that the seed's users know."""

import math
from typing import Any

from agentruntime import units
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool

from uapi_gateway.http.observation import Observation
from uapi_gateway.http.statistics import AgentCalls, Statistics
from uapi_gateway.registry import Agent


def platform_document(observed: Observation) -> dict[str, Any]:
    """{"status", "uptime", "requests_processed", "memory_usage", "cpu_usage"}, and "reason" if unhealthy.

    Memory and CPU are those of the gateway, Envoy and all workers; CPU in percent of one core.
    """
    statistics = observed.statistics or Statistics()
    memory_bytes = observed.own_memory_bytes + sum(w.usage.memory_bytes for w in observed.workers or ())
    cpu_percent = observed.own_cpu_percent + sum(w.usage.cpu_percent for w in observed.workers or ())
    return _document(
        problems=observed.problems,
        uptime_s=observed.uptime_s,
        requests=statistics.completed,
        memory_bytes=memory_bytes,
        cpu_percent=cpu_percent,
    )


def agent_document(agent: Agent, observed: Observation, now: float) -> dict[str, Any]:
    """The same for one agent, and "state" if it sleeps. One from outside has no usage that anyone here sees.

    Args:
        agent: whose it is.
        observed: the platform.
        now: seconds since the epoch.
    """
    calls = (observed.statistics or Statistics()).agents.get(agent.agent_id, AgentCalls())
    # One that sleeps takes calls: the next one wakes it.
    problems = [] if agent.ready or agent.asleep else [agent.reason]
    if agent.lease is not None:
        return _document(problems=problems, requests=calls.total)
    workers = [worker for worker in observed.workers or () if worker.agent == agent.agent_id]
    since = [w.ready_at.ToNanoseconds() / 1e9 for w in workers if w.state == pool.WORKER_STATE_READY]
    return _document(
        problems=problems,
        state="asleep" if agent.asleep else "",
        uptime_s=max(0.0, now - min(since)) if since else 0.0,
        requests=calls.total,
        memory_bytes=sum(worker.usage.memory_bytes for worker in workers),
        cpu_percent=sum(worker.usage.cpu_percent for worker in workers),
    )


def _document(
    *,
    problems: list[str],
    requests: float,
    state: str = "",
    uptime_s: float | None = None,
    memory_bytes: int | None = None,
    cpu_percent: float | None = None,
) -> dict[str, Any]:
    document: dict[str, Any] = {"status": "unhealthy" if problems else "healthy"}
    if state:
        document["state"] = state
    if uptime_s is not None:
        document["uptime"] = units.format_duration(uptime_s)
    document["requests_processed"] = int(requests)
    if memory_bytes is not None:
        document["memory_usage"] = units.format_size(memory_bytes)
    if cpu_percent is not None:
        document["cpu_usage"] = f"{math.floor(cpu_percent + 0.5)}%"
    if problems:
        document["reason"] = "; ".join(problems)
    return document
