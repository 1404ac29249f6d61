"""What the gateway must know at once after a restart: registered agents, and the pool's agents as last heard.

Envoy outlives the gateway; a gateway that answered it with an empty registry would take every agent out of it.
"""

import json
import sqlite3
from pathlib import Path

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool

from uapi_gateway.kept import KeptTables
from uapi_gateway.registry import Agent, Endpoint, Lease

_SCHEMA = """
CREATE TABLE IF NOT EXISTS deployments (agent TEXT PRIMARY KEY, message BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS registered (agent_id TEXT PRIMARY KEY, record TEXT NOT NULL, descriptors BLOB NOT NULL);
"""


class Store:
    """All of it, in a file."""

    def __init__(self, path: Path) -> None:
        self._tables = KeptTables(path, _SCHEMA)

    def load(self) -> tuple[list[pool.Deployment], list[Agent]]:
        """The pool's deployments and the registered agents, as last saved. Blocks."""
        return self._tables.read(_load)

    async def save_deployment(self, deployment: pool.Deployment) -> None:
        row = (deployment.agent, deployment.SerializeToString())
        await self._tables.write("INSERT OR REPLACE INTO deployments VALUES (?, ?)", row)

    async def remove_deployment(self, agent_id: str) -> None:
        await self._tables.write("DELETE FROM deployments WHERE agent = ?", (agent_id,))

    async def save_registered(self, agent: Agent) -> None:
        """On disk when it returns."""
        row = (agent.agent_id, json.dumps(_record(agent)), agent.descriptors)
        await self._tables.write("INSERT OR REPLACE INTO registered VALUES (?, ?, ?)", row)

    async def remove_registered(self, agent_id: str) -> None:
        await self._tables.write("DELETE FROM registered WHERE agent_id = ?", (agent_id,))

    def close(self) -> None:
        self._tables.close()


def _load(database: sqlite3.Connection) -> tuple[list[pool.Deployment], list[Agent]]:
    deployments = [
        pool.Deployment.FromString(message)
        for (message,) in database.execute("SELECT message FROM deployments ORDER BY agent")
    ]
    registered = [
        _agent(json.loads(record), descriptors)
        for record, descriptors in database.execute("SELECT record, descriptors FROM registered ORDER BY agent_id")
    ]
    return deployments, registered


def _record(agent: Agent) -> dict[str, object]:
    assert agent.lease is not None
    return {
        "agent_id": agent.agent_id,
        "services": agent.services,
        "capabilities": agent.capabilities,
        "health_check": agent.health_check,
        "endpoints": [
            {"address": e.address, "ready": e.ready, "reason": e.reason, "resolved": e.resolved}
            for e in agent.endpoints
        ],
        "lease": {
            "lease_id": agent.lease.lease_id,
            "ttl_s": agent.lease.ttl_s,
            "expires_at": agent.lease.expires_at,
        },
    }


def _agent(record: dict[str, object], descriptors: bytes) -> Agent:
    lists = {key: tuple(value) for key in ("services", "capabilities") if isinstance(value := record[key], list)}
    endpoints, lease = record["endpoints"], record["lease"]
    assert isinstance(endpoints, list)
    assert isinstance(lease, dict)
    return Agent(
        agent_id=str(record["agent_id"]),
        services=lists["services"],
        capabilities=lists["capabilities"],
        health_check=str(record["health_check"]),
        endpoints=tuple(Endpoint(**endpoint) for endpoint in endpoints),
        descriptors=descriptors,
        lease=Lease(**lease),
    )
