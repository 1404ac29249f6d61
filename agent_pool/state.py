"""What the pool remembers on disk: desired state, and where its workers are. One pool per directory."""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from agentruntime import errors, names
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
    turn: int = 0
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
            turn=worker.turn,
            restarts=worker.restarts,
            started_at_s=worker.started_at_s,
            ready_at_s=worker.ready_at_s,
            gpus=worker.gpus,
            handle=worker.handle,
            rests=worker.rests,
            state=_lasting(worker),
            reason=worker.reason,
            last_traceback=worker.last_traceback,
        )

    def restored(self, agent: str) -> Worker:
        return Worker(names.worker_id(agent, self.number), agent, **self.model_dump())


def _lasting(worker: Worker) -> State:
    """What of a worker's state the next pool begins with."""
    if worker.rests:
        return worker.state if worker.state is State.FAILED else State.STOPPED
    return State.DRAINING if worker.state is State.DRAINING else State.PENDING


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
            workers=[
                SavedWorker.of(worker)
                for worker in deployment.workers.values()
                # Of an agent that is being started again, the new ones are no part of what it was.
                if worker.revision in deployment.revisions
            ],
        )

    def restored(self) -> Deployment:
        """With its workers, all of them pending but those that drain or have ended for good."""
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


class StateStore:
    """`pool.db` in a directory that one pool at a time may use: a row per agent, so that thousands cost no more each.

    Raises:
        FailedPrecondition: another pool has the directory.
        DataLoss: the file is none of ours.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = directory / "pool.db"
        self._lock = os.open(directory / "pool.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise errors.FailedPrecondition(
                f"another pool already runs on {directory.parent}; stop it with `agent down`, or set UAPI_HOME"
            ) from None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        try:
            self._database = self._thread.submit(_open, self._path).result()
        except sqlite3.DatabaseError:
            self._thread.shutdown()
            os.close(self._lock)
            raise self._damage() from None

    def load(self) -> list[SavedDeployment]:
        """What was saved last; nothing if nothing was.

        Raises:
            DataLoss: it cannot be read.
        """
        try:
            rows = self._thread.submit(_load, self._database).result()
            return [SavedDeployment.model_validate_json(body) for (body,) in rows]
        except (sqlite3.DatabaseError, ValidationError):
            raise self._damage() from None

    async def save(self, agents: Mapping[str, SavedDeployment | None]) -> None:
        """Replaces what is saved of these agents, or removes it: of all of them or of none. On disk when it returns.

        Raises:
            ResourceExhausted: the disk is full, or fails.
        """
        # Serialized here, where nothing changes it meanwhile.
        rows = [(agent, saved.model_dump_json() if saved else None) for agent, saved in agents.items()]
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, _save, self._database, rows)
        except sqlite3.OperationalError as error:
            raise errors.ResourceExhausted(
                f"what the pool should remember cannot be written to {self._path}: {error}; free some of that disk"
            ) from None

    def close(self) -> None:
        self._thread.submit(self._database.close).result()
        self._thread.shutdown()
        os.close(self._lock)

    def _damage(self) -> errors.DataLoss:
        return errors.DataLoss(
            f"{self._path} is damaged, or of another version; move it away to begin with no agents"
        )


def _open(path: Path) -> sqlite3.Connection:
    path.touch(mode=0o600)
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE IF NOT EXISTS agents (agent TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID")
    return database


def _load(database: sqlite3.Connection) -> list[tuple[str]]:
    return database.execute("SELECT body FROM agents ORDER BY agent").fetchall()


def _save(database: sqlite3.Connection, rows: list[tuple[str, str | None]]) -> None:
    database.execute("BEGIN IMMEDIATE")
    try:
        for agent, body in rows:
            if body is None:
                database.execute("DELETE FROM agents WHERE agent = ?", (agent,))
            else:
                database.execute("INSERT OR REPLACE INTO agents VALUES (?, ?)", (agent, body))
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
