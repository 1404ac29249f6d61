"""An agent as the pool was asked to run it: the request, the revision made of it, and its workers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from agentruntime import names
from agentruntime.manifest import AgentManifest
from pydantic import BaseModel, ConfigDict

from agent_pool.cgroups.base import Limits
from agent_pool.drivers.base import Launch, Prepared, Revision
from agent_pool.health import HealthPolicy
from agent_pool.lifecycle import LIVING
from agent_pool.resources import Requested, Resources
from agent_pool.worker import Worker


@dataclass(frozen=True)
class AskedHealth:
    """The part of a health policy that a request sets; None where it is silent."""

    interval_s: float | None = None
    timeout_s: float | None = None
    retries: int | None = None
    start_timeout_s: float | None = None

    def over(self, policy: HealthPolicy) -> HealthPolicy:
        return replace(policy, **{name: value for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True)
class Asked:
    """Settings that a request makes; empty or None where it is silent."""

    resources: Requested = field(default_factory=Requested)
    health: AskedHealth = field(default_factory=AskedHealth)
    # "isolated", "host" or "".
    network: str = ""
    venv: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    log_level: str = ""

    def differs_from(self, running: "Asked") -> list[str]:
        """Names of the settings that this makes and that are not as what runs has them."""
        changed = []
        for part, other in ((self.resources, running.resources), (self.health, running.health)):
            for entry in fields(part):
                value = getattr(part, entry.name)
                if value is not None and value != getattr(other, entry.name):
                    changed.append(entry.name)
        for name in ("network", "venv", "env", "log_level"):
            value = getattr(self, name)
            if value and value != getattr(running, name):
                changed.append(name)
        return changed


@dataclass(frozen=True)
class RunRequest:
    """What RunAgent is called with."""

    image: str
    agent: str = ""
    replicas: int | None = None
    asked: Asked = field(default_factory=Asked)
    allow_unenforced: bool = False


class Program(BaseModel):
    """What agent.yaml says of the agent's code."""

    model_config = ConfigDict(frozen=True)

    entrypoint: str
    services: tuple[str, ...] = ()
    env: dict[str, str] = {}
    concurrency: int = 64
    default_timeout_s: float = 60.0
    idempotent: bool = True

    @classmethod
    def of(cls, manifest: AgentManifest) -> "Program":
        return cls(
            entrypoint=manifest.entrypoint,
            services=tuple(manifest.services),
            env=manifest.env,
            concurrency=manifest.concurrency,
            default_timeout_s=manifest.timeout_s,
            idempotent=manifest.idempotent,
        )


class Spec(BaseModel):
    """One revision of an agent: everything its workers are launched from."""

    model_config = ConfigDict(frozen=True)

    agent: str
    number: int
    agent_index: int
    # "name:tag"
    image: str
    image_digest: str
    bundle: str
    program: Program
    asked: Asked
    resources: Resources
    health: HealthPolicy

    def revision(self) -> Revision:
        """As drivers see it."""
        return Revision(
            key=f"{self.agent}@{self.number}",
            agent=self.agent,
            number=self.number,
            image_digest=self.image_digest,
            bundle=self.bundle,
            entrypoint=self.program.entrypoint,
            services=self.program.services,
            env={**self.program.env, **self.asked.env},
            log_level=self.asked.log_level or "INFO",
            venv=self.asked.venv,
            host_network=self.asked.network == "host",
            agent_index=self.agent_index,
            limits=Limits(
                memory_bytes=self.resources.memory_limit_bytes,
                cpu_millis=self.resources.cpu_limit_millis,
                pids=self.resources.pids_limit,
            ),
            wants_gpus=self.resources.gpus > 0,
            concurrency=self.program.concurrency,
            default_timeout_s=self.program.default_timeout_s,
            start_timeout_s=self.health.start_timeout_s,
        )


@dataclass
class Deployment:
    """Desired state of one agent, and the workers there are."""

    spec: Spec
    replicas: int
    stopped: bool = False
    prepared: Prepared = field(default_factory=Prepared)
    # Of limits that are not enforced; those of the sandbox are in `prepared`.
    notes: tuple[str, ...] = ()
    workers: dict[str, Worker] = field(default_factory=dict)
    # False until its first workers are ready: then it counts for what `before` says.
    begun: bool = True
    before: "Deployment | None" = None

    @property
    def agent(self) -> str:
        return self.spec.agent

    def living(self) -> list[Worker]:
        """Workers that count towards the desired number: all but those that are on their way out."""
        return [worker for worker in self.workers.values() if worker.wanted]

    def surplus(self) -> list[Worker]:
        """Workers beyond the desired number, the youngest first; those that do not serve go before those that do."""
        living = sorted(self.living(), key=lambda worker: (worker.state in LIVING, -worker.number))
        return living[: max(0, len(living) - self.replicas)]

    def new_workers(self, count: int) -> list[Worker]:
        """That many more workers, with the lowest numbers that are free. They are entered here."""
        made = []
        for _ in range(count):
            number = _lowest_free({worker.number for worker in self.workers.values()})
            worker = Worker(names.worker_id(self.agent, number), self.agent, number, self.spec.number)
            self.enter(worker)
            made.append(worker)
        return made

    def enter(self, worker: Worker) -> None:
        self.workers[worker.worker_id] = worker

    def launch(self, worker: Worker) -> Launch:
        return Launch(worker.worker_id, self.spec.revision(), worker.gpus)


def _lowest_free(taken: set[int]) -> int:
    return next(number for number in range(1, len(taken) + 2) if number not in taken)
