"""An agent as the pool was asked to run it: its revisions, its policies, and its workers."""

from collections.abc import Collection
from dataclasses import dataclass, field

from agentruntime import errors, names
from agentruntime.sections import NONE

from agent_pool.asked import Asked, AskedPolicies
from agent_pool.drivers.base import Launch, Prepared, Revision
from agent_pool.lifecycle import LIVING, State
from agent_pool.logs import LogPolicy
from agent_pool.policies import Policies
from agent_pool.revision import Spec
from agent_pool.worker import Worker

DEFAULT_GRACE_S = 30.0
# Revisions of an agent that are remembered.
_MOST_REVISIONS = 10
CONVERSATIONS = "uapi.v1.ConversationService"


@dataclass(frozen=True)
class RunRequest:
    """What RunAgent is called with."""

    image: str
    agent: str = ""
    replicas: int | None = None
    asked: Asked = field(default_factory=Asked)
    policies: AskedPolicies = field(default_factory=AskedPolicies)
    allow_unenforced: bool = False
    # By an operator of some agents alone.
    narrow: bool = False


@dataclass(frozen=True)
class Roll:
    """A roll that goes on: so much of it as a pool that takes over needs."""

    # "updating to revision 4": the status says it.
    what: str
    # The revision of the new workers.
    target: int
    # The revision to go back to, if a new worker fails; 0 for nowhere.
    back_to: int
    # Keys of the workers to be replaced.
    old: tuple[str, ...]
    # New ones that there are to be in the end.
    wanted: int
    grace_s: float


@dataclass
class Deployment:
    """Desired state of one agent, and the workers there are, the oldest first."""

    agent: str
    # By number; the kept ones.
    revisions: dict[int, Spec]
    # The number of the current one; during an update, of the one that is rolled out.
    current: int
    # Workers that are wanted; while the agent sleeps, as many as it had or begins with.
    replicas: int
    # Of the policies, all that was ever asked for.
    asked: AskedPolicies = field(default_factory=AskedPolicies)
    stopped: bool = False
    asleep: bool = False
    # What goes on or went wrong last with the agent as a whole; see the proto.
    status: str = ""
    # Why its log lines cannot be sent where they shall go; "" while they can.
    log_trouble: str = ""
    roll: Roll | None = None
    # By key.
    workers: dict[str, Worker] = field(default_factory=dict)
    # False until its first workers are ready: then it counts for what `before` says.
    begun: bool = True
    before: "Deployment | None" = None
    # In force.
    policies: Policies = field(init=False)

    def __post_init__(self) -> None:
        self.policies = self._policies(self.asked, self.spec)

    @property
    def spec(self) -> Spec:
        """The current revision."""
        return self.revisions[self.current]

    @property
    def prepared(self) -> Prepared:
        """What is known of the current revision's code."""
        return self.spec.prepared

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the current revision is not enforced or has no effect, and whether its log lines cannot be sent."""
        found = [self.spec.named_otherwise, self.spec.without_effect, self.log_trouble]
        if self.spec.prepared.degraded and self.spec.permissions.secrets:
            found.append(
                "its secrets lie in a directory below the runtime directory: it cannot have one of its own in memory"
            )
        return (*self.spec.notes, *self.spec.prepared.degraded, *filter(None, found))

    @property
    def target(self) -> int:
        """How many workers there are to be now."""
        return 0 if self.stopped or self.asleep else self.replicas

    def take_up(self, asked: AskedPolicies) -> bool:
        """Puts policies in force, over those asked for before; whether that changed anything.

        Raises:
            InvalidArgument: a value that makes no sense; everything is as it was then.
        """
        merged = asked.over(self.asked)
        policies = self._policies(merged, self.spec)
        changed = policies != self.policies
        if (policies.health, policies.restart) != (self.policies.health, self.policies.restart):
            for worker in self.workers.values():
                # Whoever waits for the old interval, or for a restart, begins anew.
                worker.ask_now.set()
        self.asked, self.policies = merged, policies
        return changed

    def check_narrow(self, spec: Spec, asked: AskedPolicies) -> None:
        """Checks what an operator of some agents may not change: where the pool itself sends log lines.

        Args:
            spec: the revision.
            asked: all policies that are asked for with it.

        Raises:
            PermissionDenied: to somewhere else than now.
        """
        wanted = asked.over(spec.program.policies).logging.aggregator
        now = self.policies.logging.aggregator if self.begun else NONE
        if wanted not in (None, NONE, now):
            raise errors.PermissionDenied(
                f"the agent.yaml of {spec.image} has log lines sent to {wanted}, to which the pool connects; that "
                "takes the role operate for all agents, or --log-aggregator none",
                reason="NOT_PERMITTED",
            )

    def turn_to(self, spec: Spec) -> None:
        """Makes a revision the current one, and forgets the oldest that nothing runs from.

        Raises:
            InvalidArgument: the policies that its agent.yaml says make no sense with those asked for.
        """
        self.policies = self._policies(self.asked, spec)
        self.keep(spec)
        self.current = spec.number

    def keep(self, spec: Spec) -> None:
        """Remembers a revision, or what changed of it, and forgets the oldest that nothing runs from."""
        self.revisions[spec.number] = spec
        if spec.number == self.current:
            # Which services it has is known once its code is loaded.
            self.policies = self._policies(self.asked, spec)
        needed = {self.current, spec.number, *(worker.revision for worker in self.workers.values())}
        if self.roll is not None:
            needed |= {self.roll.target, self.roll.back_to}
        for number in sorted(self.revisions):
            if len(self.revisions) > _MOST_REVISIONS and number not in needed:
                del self.revisions[number]

    def next_number(self) -> int:
        """Of a new revision."""
        return max(self.revisions) + 1

    def revision(self, number: int) -> Revision:
        """As drivers see it."""
        return self.revisions[number].driver_revision(self.policies.health.start_timeout_s)

    def spec_of(self, worker: Worker) -> Spec:
        """The revision that a worker is launched from."""
        return self.revisions[worker.revision]

    @property
    def log_policy(self) -> LogPolicy:
        """How its logs are kept and sent."""
        logging = self.policies.logging
        # A copy: this is asked from threads, while workers come and go.
        living = frozenset({"template", *(worker.worker_id for worker in list(self.workers.values()))})
        as_objects = self.spec.log_format == "json"
        return LogPolicy(logging.aggregator, logging.retention_s, logging.max_bytes, as_objects, living)

    def launch(self, worker: Worker) -> Launch:
        return Launch(worker.key, worker.worker_id, self.revision(worker.revision), worker.gpus)

    def living(self) -> list[Worker]:
        """Workers that count towards the desired number: all but those that are on their way out."""
        return [worker for worker in self.workers.values() if worker.wanted]

    def ready(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.state is State.READY]

    def surplus(self) -> list[Worker]:
        """Workers beyond the desired number, the youngest first; those that do not serve go before those that do."""
        youngest_first = reversed(self.living())
        living = sorted(youngest_first, key=lambda worker: worker.state in LIVING)
        return living[: max(0, len(living) - self.target)]

    def named(self, worker_id: str) -> Worker | None:
        """What a worker's name means: the newest of that name that takes calls, else the newest."""
        newest_first = (each for each in reversed(self.workers.values()) if each.worker_id == worker_id)
        return max(newest_first, key=lambda worker: worker.state is State.READY, default=None)

    def new_workers(
        self, count: int, *, revision: int = 0, places: Collection[int] = (), avoid: Collection[str] = ()
    ) -> list[Worker]:
        """That many more workers. They are entered here.

        Args:
            count: how many.
            revision: theirs; 0 for the current one.
            places: numbers of workers whose places they take, as far as they go; then the lowest that are free.
            avoid: keys that still mean other workers, though these may be gone.
        """
        made: list[Worker] = []
        taken = {worker.number for worker in self.workers.values()}
        free = (number for number in range(1, len(taken) + count + 1) if number not in taken)
        for number in [*places, *free][:count]:
            worker = Worker(names.worker_id(self.agent, number), self.agent, number, revision or self.current)
            while worker.key in self.workers or worker.key in avoid:
                worker.turn += 1
            self.enter(worker)
            made.append(worker)
        return made

    def enter(self, worker: Worker) -> None:
        self.workers[worker.key] = worker

    @staticmethod
    def _policies(asked: AskedPolicies, spec: Spec) -> Policies:
        serving = spec.serving
        return Policies.of(
            asked.over(spec.program.policies),
            serving.concurrency,
            debug=serving.debug,
            converses=CONVERSATIONS in spec.prepared.services,
        )
