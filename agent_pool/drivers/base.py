"""What the pool asks of whatever launches workers."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from agentruntime.launch import ConversationSpec

from agent_pool.cgroups.base import Limits


@dataclass(frozen=True)
class Revision:
    """One version of an agent, as its workers are launched from it. The same for all of them."""

    # "my-agent@3", unique in the pool.
    key: str
    agent: str
    number: int
    image_digest: str
    # Directory of the unpacked image.
    bundle: str
    # "module:Class".
    entrypoint: str
    services: tuple[str, ...]
    env: Mapping[str, str]
    log_level: str
    # "" for the platform's own Python.
    venv: str
    host_network: bool
    # Counts the agents of this pool; tells their uids apart.
    agent_index: int
    # Of one worker, and of what runs the agent's code before there is a worker.
    limits: Limits
    wants_gpus: bool
    concurrency: int
    default_timeout_s: float
    start_timeout_s: float
    # Calls that wait beyond `concurrency`.
    queue: int = 1024
    # Of responses: "none" or "gzip".
    compression: str = "none"
    optimize_throughput: bool = False
    debug: bool = False
    # "native" or "container".
    mode: str = "native"
    # Only the system calls that a Python program with gRPC makes.
    restricted: bool = False
    read_only_root: bool = True
    # "text" or "json".
    log_format: str = "text"
    # What a container image of it is made from; "" for the pool's default.
    base_image: str = ""
    # Whether to go on where this machine has no sandbox and the pool is root: somebody allowed it.
    may_be_root: bool = False
    # "host:port" to which its workers may connect, though their network is isolated.
    egress: tuple[str, ...] = ()
    # Names of those that its workers need as files; "*" is all that were set for it.
    secrets: tuple[str, ...] = ()
    conversations: ConversationSpec = field(default_factory=ConversationSpec)


@dataclass(frozen=True)
class Prepared:
    """What became known of a revision when it was loaded."""

    services: tuple[str, ...] = ()
    # A serialized FileDescriptorSet.
    descriptors: bytes = b""
    # Why its workers start slower than a fork, or "".
    start_note: str = ""
    # What this machine could not enforce, a sentence each.
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Launch:
    """One worker to be started."""

    # Unique in the pool.
    key: str
    # What it is called, in its log too. A worker and its successor may have the same, for as long as both are there.
    worker_id: str
    revision: Revision
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Running:
    """A worker whose process exists and listens."""

    key: str
    pid: int
    # "unix:/path".
    address: str
    # What the driver needs to find it again after a restart of the pool, as JSON.
    handle: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exit:
    """How a worker ended."""

    # "OOM-killed at 512MB", "exit status 1".
    reason: str
    # The agent's own, if it said.
    error: str = ""
    # With the error; without one, the last words of its log, from where the interpreter began to say how it died.
    traceback: str = ""
    # Of exit(3), or the negated number of the signal that killed it; None where nobody saw it.
    status: int | None = None


@dataclass(frozen=True)
class Enforcement:
    """Whether a limit or isolation is enforced here: how, or why not and what would give it."""

    what: str
    enforced: bool
    detail: str


@dataclass(frozen=True)
class GpuStats:
    """What is done with one GPU, as NVML measures it."""

    index: int
    utilization_percent: float
    memory_bytes: int


@dataclass(frozen=True)
class Stats:
    """What a worker uses."""

    cpu_s: float = 0.0
    memory_bytes: int = 0
    memory_peak_bytes: int = 0
    # Only where it was asked for.
    memory_pss_bytes: int = 0
    pids: int = 0
    throttled_periods: int = 0
    throttled_s: float = 0.0
    # Through its interfaces but loopback; None where it has no network of its own.
    network_received_bytes: int | None = None
    network_sent_bytes: int | None = None
    gpus: tuple[GpuStats, ...] = ()


class Driver(ABC):
    """Launches workers. A worker is known by its key from `start` until `destroy`."""

    name: str

    @abstractmethod
    async def enforcement(self, mode: str) -> list[Enforcement]:
        """What can be enforced on this machine for workers of that mode. Cheap."""

    async def choose(self) -> str:
        """The mode of an agent for which nobody asked one."""
        return "native"

    @abstractmethod
    async def check(self, revision: Revision) -> None:
        """Raises FailedPrecondition if no worker of this revision could ever be launched here. Cheap."""

    @abstractmethod
    async def prepare(self, revision: Revision) -> Prepared:
        """Makes the revision's workers quick to start. Idempotent.

        Raises:
            AgentFailed: the agent's code does not import; nothing of it is left.
            Unavailable: what loads it died under it; prepare it again.
        """

    @abstractmethod
    async def rest(self, revision: Revision) -> None:
        """No worker of it is expected soon: keeps no process for it but what `prepare` made. Idempotent."""

    @abstractmethod
    async def release(self, revision: Revision) -> None:
        """Undoes `prepare`; workers that run go on. Idempotent."""

    @abstractmethod
    def warm(self) -> Collection[str]:
        """Keys of the revisions that are prepared now. Cheap."""

    @abstractmethod
    async def start(self, launch: Launch) -> Running:
        """Launches a worker, and returns when it listens. Does not limit how long that takes.

        Raises:
            AgentFailed: it ended before. `destroy` it then, too, as after a cancellation.
            Unavailable: what it is made from died under it; `destroy` it and start it again.
        """

    @abstractmethod
    async def wait(self, key: str) -> Exit:
        """Returns when the worker has ended. May be called more than once."""

    @abstractmethod
    async def stop(self, key: str, grace_s: float) -> Exit:
        """Lets the worker finish its calls for up to `grace_s`, then kills it; returns when it has ended."""

    @abstractmethod
    async def limit(self, key: str, limits: Limits) -> None:
        """Changes the caps of a worker that runs; all of them or none.

        Raises:
            FailedPrecondition: it uses more memory than that, or nothing caps it here.
        """

    @abstractmethod
    async def debug(self, key: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the debugger of a worker that runs with `debug`: Debug Adapter Protocol.

        Raises:
            FailedPrecondition: this driver cannot reach it.
        """

    @abstractmethod
    async def destroy(self, key: str) -> None:
        """Kills what is left of the worker and removes everything it had. Idempotent."""

    @abstractmethod
    async def recover(
        self,
        revisions: Mapping[str, Prepared],
        launches: Mapping[str, Launch],
        handles: Mapping[str, Mapping[str, Any]],
    ) -> list[Running]:
        """Takes over the workers of a pool that died, and ends whatever else of it is left.

        Args:
            revisions: those wanted, by key, with what was known of them.
            launches: what is wanted, by key.
            handles: of the workers that ran last, by key.
        """

    @abstractmethod
    def cpu_s(self, key: str) -> float:
        """CPU time that the worker has used, in seconds; much cheaper than all of `stats`."""

    @abstractmethod
    def stats(self, key: str, *, share: bool = False) -> Stats:
        """What the worker uses now (`usage.stats`). Blocks for a fraction of a millisecond.

        Args:
            key: the worker's.
            share: whether to read its share of memory too, which takes some milliseconds for each process.
        """

    @abstractmethod
    async def close(self) -> None:
        """Lets go of everything; no worker runs any more."""
