"""`agent ps`."""

import time
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from agentruntime import units
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_pb2
from agentruntime.cli import deployment, output, platform
from agentruntime.client.sync import Client

_WORKERS = ["WORKER", "STATE", "REVISION", "PID", "RESTARTS", "CPU", "MEMORY", "UP", "REASON"]
_AGENTS = ["AGENT", "STATE", "IMAGE", "REVISION", "WORKERS", "SCALING", "STATUS"]
_NOTHING = ["-"] * 5
# As `docker ps` shows them.
_SHORT_ID = 12


def command(
    agent: Annotated[str | None, typer.Option(help="Only this agent's.")] = None,
    agents: Annotated[bool, typer.Option("--agents", help="A line for each agent instead of each worker.")] = False,
    format_: output.Output = None,
) -> None:
    """List agents and their workers.

    Agents without workers are listed too: those that sleep, were stopped, or are registered from outside.
    """
    as_json = output.wants_json(format_)
    with platform.connect() as client:
        outside = [
            each
            for each in client.registry.ListAgents(registry_pb2.ListAgentsRequest()).agents
            if each.source == registry_pb2.AGENT_SOURCE_REGISTERED and agent in (None, each.agent_id)
        ]
        # The pool does not know the name of an agent from outside.
        asked = pool_pb2.ListWorkersRequest(agent=agent or "")
        workers = [] if agent and outside else list(client.pool.ListWorkers(asked).workers)
        if as_json and not agents:
            output.print_json([output.as_data(worker) for worker in workers])
            return
        mine = _deployments(client, agent, workers)
    if as_json:
        output.print_json([*map(_agent_data, mine), *map(_outside_data, outside)])
    elif agents:
        output.print_table(_AGENTS, [*map(_agent_row, mine), *map(_outside_agent_row, outside)])
    else:
        _print_workers(list(_rows(mine, outside, time.time())), workers)


def _print_workers(rows: list[list[str]], workers: Iterable[pool_pb2.Worker]) -> None:
    """With the containers, if there are any."""
    containers = {worker.worker_id: worker.container_id[:_SHORT_ID] for worker in workers if worker.container_id}
    if not containers:
        output.print_table(_WORKERS, rows)
        return
    place = _WORKERS.index("PID") + 1
    wider = [[*row[:place], containers.get(row[0], "-"), *row[place:]] for row in rows]
    output.print_table([*_WORKERS[:place], "CONTAINER", *_WORKERS[place:]], wider)


def _deployments(client: Client, agent: str | None, workers: Iterable[pool_pb2.Worker]) -> list[pool_pb2.Deployment]:
    """The agents of the pool, with these workers."""
    found = []
    # One message each: a thousand of them, with their descriptors, are too long for one.
    watch = client.pool.WatchDeployments(pool_pb2.WatchDeploymentsRequest())
    for event in watch:
        if event.synced:
            break
        if agent in (None, event.changed.agent):
            del event.changed.workers[:]
            event.changed.workers.extend(worker for worker in workers if worker.agent == event.changed.agent)
            found.append(event.changed)
    watch.cancel()
    return sorted(found, key=lambda each: each.agent)


def state_of(of: pool_pb2.Deployment) -> str:
    """An agent's state, in a word."""
    if of.stopped:
        return "STOPPED"
    if of.asleep:
        return "ASLEEP"
    return "RUNNING" if of.workers else "PENDING"


def _rows(
    deployments: Iterable[pool_pb2.Deployment], outside: Iterable[registry_pb2.AgentInfo], now: float
) -> Iterable[list[str]]:
    for each in deployments:
        yield from (_row(worker, now) for worker in each.workers)
        if not each.workers:
            yield [each.agent, state_of(each), str(each.revision), *_NOTHING, each.status]
        elif each.status:
            yield [each.agent, "", "", *[""] * 5, each.status]
    for agent in outside:
        yield [agent.agent_id, _outside_state(agent), "-", *_NOTHING, _where(agent)]


def _row(worker: pool_pb2.Worker, now: float) -> list[str]:
    started = worker.started_at.ToNanoseconds() / 1e9
    running = worker.pid > 0
    return [
        worker.worker_id,
        pool_pb2.WorkerState.Name(worker.state).removeprefix("WORKER_STATE_"),
        str(worker.revision),
        str(worker.pid or "-"),
        str(worker.restarts),
        f"{worker.usage.cpu_percent:.0f}%" if running else "-",
        units.format_size(worker.usage.memory_bytes) if running else "-",
        units.format_duration(now - started) if running and started else "-",
        "; ".join(text for text in (_reason(worker, now), worker.start_note) if text),
    ]


def _reason(worker: pool_pb2.Worker, now: float) -> str:
    retry = worker.retry_at.ToNanoseconds() / 1e9
    when = f", next try in {units.format_duration(max(retry - now, 0))}" if retry else ""
    if worker.crash_loop:
        return f"CRASH LOOP{when}: {worker.reason}"
    return f"{worker.reason}{when}" if worker.reason else ""


def _agent_row(of: pool_pb2.Deployment) -> list[str]:
    ready = sum(worker.state == pool_pb2.WORKER_STATE_READY for worker in of.workers)
    scaling = of.settings.scaling
    scales = f"{scaling.min_replicas} to {scaling.max_replicas}" if scaling.auto_scale else "-"
    return [of.agent, state_of(of), of.image, str(of.revision), f"{ready} of {of.replicas}", scales, of.status]


def _outside_state(of: registry_pb2.AgentInfo) -> str:
    return registry_pb2.AgentState.Name(of.state).removeprefix("AGENT_STATE_")


def _where(of: registry_pb2.AgentInfo) -> str:
    """Where an agent from outside is, and what is wrong with it."""
    addresses = ", ".join(endpoint.address for endpoint in of.endpoints)
    return f"registered at {addresses}" + (f"; {of.reason}" if of.reason else "")


def _outside_agent_row(of: registry_pb2.AgentInfo) -> list[str]:
    return [of.agent_id, _outside_state(of), "-", "-", "-", "-", _where(of)]


def _agent_data(of: pool_pb2.Deployment) -> dict[str, Any]:
    return {"source": "AGENT_SOURCE_POOL", "state": state_of(of), **deployment.data(of)}


def _outside_data(of: registry_pb2.AgentInfo) -> dict[str, Any]:
    data = output.as_data(of)
    return {"agent": data.pop("agent_id"), **data, "state": _outside_state(of), "status": of.reason, "workers": []}
