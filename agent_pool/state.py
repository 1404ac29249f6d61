"""What the pool remembers on disk: desired state, and where its workers are. One pool per directory."""

import asyncio
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentruntime import errors, files, names
from pydantic import BaseModel, Field, ValidationError

from agent_pool.asked import AskedPolicies
from agent_pool.deployment import Deployment, Roll
from agent_pool.lifecycle import State
from agent_pool.revision import Spec
from agent_pool.worker import Worker


class SavedWorker(BaseModel):
    """A worker that ran, or has ended for good."""

    number: int
    revision: int
    restarts: int = 0
    started_at_s: float = 0.0
    ready_at_s: float = 0.0
    gpus: tuple[int, ...] = ()
    handle: Mapping[str, Any] = Field(default_factory=dict)
    # Of one that has ended for good.
    rests: bool = False
    state: State = State.PENDING
    reason: str = ""
    last_traceback: str = ""

    @classmethod
    def of(cls, worker: Worker) -> "SavedWorker":
        return cls.model_construct(
            number=worker.number,
            revision=worker.revision,
            restarts=worker.restarts,
            started_at_s=worker.started_at_s,
            ready_at_s=worker.ready_at_s,
            gpus=worker.gpus,
            handle=worker.handle,
            rests=worker.rests,
            state=worker.state if worker.rests else State.PENDING,
            reason=worker.reason,
            last_traceback=worker.last_traceback,
        )

    def restored(self, agent: str) -> Worker:
        return Worker(names.worker_id(agent, self.number), agent, **self.model_dump())


class SavedDeployment(BaseModel):
    """An agent."""

    agent: str
    revisions: list[Spec]
    current: int
    asked: AskedPolicies
    replicas: int
    stopped: bool
    asleep: bool
    status: str = ""
    roll: Roll | None = None
    workers: list[SavedWorker] = Field(default_factory=list)

    @classmethod
    def of(cls, deployment: Deployment) -> "SavedDeployment":
        return cls.model_construct(
            agent=deployment.agent,
            revisions=list(deployment.revisions.values()),
            current=deployment.current,
            asked=deployment.asked,
            replicas=deployment.replicas,
            stopped=deployment.stopped,
            asleep=deployment.asleep,
            status=deployment.status,
            roll=deployment.roll,
            workers=[SavedWorker.of(worker) for worker in deployment.living()],
        )

    def restored(self) -> Deployment:
        """With its workers, all of them pending but those that have ended for good."""
        deployment = Deployment(
            agent=self.agent,
            revisions={spec.number: spec for spec in self.revisions},
            current=self.current,
            asked=self.asked,
            replicas=self.replicas,
            stopped=self.stopped,
            asleep=self.asleep,
            status=self.status,
            roll=self.roll,
        )
        for saved in self.workers:
            deployment.enter(saved.restored(self.agent))
        return deployment


class Saved(BaseModel):
    """Everything."""

    # Of the next agent; tells uids apart.
    next_index: int = 0
    deployments: list[SavedDeployment] = Field(default_factory=list)


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
