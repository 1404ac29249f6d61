"""What the pool remembers on disk: desired state, and where its workers are. One pool per directory."""

import asyncio
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentruntime import errors, files, names
from pydantic import Base64Bytes, BaseModel, ValidationError

from agent_pool.deployment import Deployment, Spec
from agent_pool.drivers.base import Prepared
from agent_pool.worker import Worker


class SavedWorker(BaseModel):
    """A worker that ran."""

    number: int
    restarts: int = 0
    started_at_s: float = 0.0
    ready_at_s: float = 0.0
    gpus: tuple[int, ...] = ()
    handle: Mapping[str, Any] = {}


class SavedDeployment(BaseModel):
    """An agent."""

    spec: Spec
    replicas: int
    stopped: bool
    services: tuple[str, ...] = ()
    descriptors: Base64Bytes = b""
    start_note: str = ""
    degraded: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    workers: list[SavedWorker] = []

    @classmethod
    def of(cls, deployment: Deployment) -> "SavedDeployment":
        prepared = deployment.prepared
        return cls.model_construct(
            spec=deployment.spec,
            replicas=deployment.replicas,
            stopped=deployment.stopped,
            services=prepared.services,
            descriptors=prepared.descriptors,
            start_note=prepared.start_note,
            degraded=prepared.degraded,
            notes=deployment.notes,
            workers=[_saved(worker) for worker in deployment.workers.values() if worker.wanted],
        )

    def restored(self) -> Deployment:
        """With its workers, all of them pending."""
        deployment = Deployment(
            spec=self.spec,
            replicas=self.replicas,
            stopped=self.stopped,
            prepared=Prepared(self.services, self.descriptors, self.start_note, self.degraded),
            notes=self.notes,
        )
        for saved in self.workers:
            deployment.enter(
                Worker(
                    names.worker_id(self.spec.agent, saved.number),
                    self.spec.agent,
                    saved.number,
                    self.spec.number,
                    restarts=saved.restarts,
                    started_at_s=saved.started_at_s,
                    ready_at_s=saved.ready_at_s,
                    gpus=saved.gpus,
                    handle=saved.handle,
                )
            )
        return deployment


def _saved(worker: Worker) -> SavedWorker:
    return SavedWorker.model_construct(
        number=worker.number,
        restarts=worker.restarts,
        started_at_s=worker.started_at_s,
        ready_at_s=worker.ready_at_s,
        gpus=worker.gpus,
        handle=worker.handle,
    )


class Saved(BaseModel):
    """Everything."""

    # Of the next agent; tells uids apart.
    next_index: int = 0
    deployments: list[SavedDeployment] = []


class StateFile:
    """`pool.json` in a directory that one pool at a time may use."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = directory / "pool.json"
        self._writing = asyncio.Lock()
        self._lock = os.open(directory / "pool.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise errors.FailedPrecondition(
                f"another pool already runs on {directory.parent}; stop it with `agent down`, or set UAPI_HOME"
            ) from None

    def load(self) -> Saved:
        """What was saved last; empty if nothing was.

        Raises:
            DataLoss: the file cannot be read.
        """
        try:
            return Saved.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return Saved()
        except ValidationError:
            raise errors.DataLoss(
                f"{self._path} is damaged, or of another version; move it away to begin with no agents"
            ) from None

    async def save(self, saved: Saved) -> None:
        """Replaces what is saved; on disk when it returns."""
        async with self._writing:
            # Serialized here, where nothing changes it meanwhile.
            data = saved.model_dump_json().encode()
            await asyncio.to_thread(files.write_atomically, self._path, data)

    def close(self) -> None:
        os.close(self._lock)
