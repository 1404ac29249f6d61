"""A driver whose workers are health servers in this process, as well or as sick as a test wants them."""

import asyncio
from pathlib import Path
from typing import Any

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent_pool.drivers.base import Exit, Launch, Prepared, Revision, Running
from tests.agent_pool.test_keeper import RefusingDriver


class Patient(health_pb2_grpc.HealthServicer):
    """One worker."""

    def __init__(self) -> None:
        self.serves = True
        # What it says in its trailing metadata, in milliseconds.
        self.lag = "0"
        self.asked = 0
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        self.asked += 1
        context.set_trailing_metadata((("x-uapi-lag-ms", self.lag),))
        serving = health_pb2.HealthCheckResponse
        return serving(status=serving.SERVING if self.serves else serving.NOT_SERVING)


class Hospital(RefusingDriver):
    """Of the patients by key, the latest of each."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._servers: dict[str, aio.Server] = {}
        self.patients: dict[str, Patient] = {}
        self.started = 0
        self.graces_s: list[float] = []
        self.import_s = 0.0
        self._prepared: set[str] = set()

    async def prepare(self, revision: Revision) -> Prepared:
        if revision.key not in self._prepared:
            await asyncio.sleep(self.import_s)
            self._prepared.add(revision.key)
        return Prepared()

    async def start(self, launch: Launch) -> Running:
        await self.prepare(launch.revision)
        self._call("start")
        self.started += 1
        patient = Patient()
        server = aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(patient, server)
        address = f"unix:{self._directory}/{launch.key}.{self.started}"
        server.add_insecure_port(address)
        await server.start()
        self.patients[launch.key], self._servers[launch.key] = patient, server
        return Running(launch.key, self.started, address, {"pid": self.started})

    async def wait(self, key: str) -> Exit:
        return await asyncio.shield(self.patients[key].ended)

    async def stop(self, key: str, grace_s: float) -> Exit:
        self.graces_s.append(grace_s)
        return Exit("ended as asked", status=0)

    async def destroy(self, key: str) -> None:
        if server := self._servers.pop(key, None):
            await server.stop(None)
