"""What a worker gets: defaults, agent.yaml and the request merged, and checked against what a worker needs."""

from dataclasses import dataclass, fields, replace

from agentruntime import errors, units
from agentruntime.sections import ResourcesSection

MB = 10**6
DEFAULT_CPU_MILLIS = 20
DEFAULT_MEMORY_BYTES = 64 * MB
DEFAULT_MEMORY_LIMIT_BYTES = 512 * MB
DEFAULT_PIDS_LIMIT = 256
# An echo worker lives and answers under this cap, and so does its template (tests/agent_pool/test_limits.py);
# below it an agent could only ever be killed.
LEAST_MEMORY_LIMIT_BYTES = 48 * MB
# The kernel's own floor: 1 ms of quota (Documentation/scheduler/sched-bwc.rst) in our period of 100 ms.
LEAST_CPU_MILLIS = 10
# grpc's event loop and thread pool, with room for one more.
LEAST_PIDS_LIMIT = 8
MOST_CPU_MILLIS = 10**6


@dataclass(frozen=True)
class Requested:
    """What one of the sources says; None where it is silent."""

    cpu_millis: int | None = None
    memory_bytes: int | None = None
    cpu_limit_millis: int | None = None
    memory_limit_bytes: int | None = None
    gpus: int | None = None
    pids_limit: int | None = None

    @classmethod
    def of_manifest(cls, section: ResourcesSection) -> "Requested":
        """What agent.yaml says."""
        return cls(**{field.name: getattr(section, field.name) for field in fields(cls)})

    def over(self, below: "Requested") -> "Requested":
        """This, and where it is silent what `below` says.

        A reservation given here drops a cap given below: `--memory 2GB` means a cap of 2 GB too, whatever
        agent.yaml's memory_limit says.
        """
        if self.memory_bytes is not None and self.memory_limit_bytes is None:
            below = replace(below, memory_limit_bytes=None)
        if self.cpu_millis is not None and self.cpu_limit_millis is None:
            below = replace(below, cpu_limit_millis=None)
        return Requested(
            **{
                field.name: own if (own := getattr(self, field.name)) is not None else getattr(below, field.name)
                for field in fields(self)
            }
        )


_SILENT = Requested()


@dataclass(frozen=True)
class Resources:
    """What one worker gets. `cpu_limit_millis` None is no cap."""

    cpu_millis: int = DEFAULT_CPU_MILLIS
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    cpu_limit_millis: int | None = None
    memory_limit_bytes: int = DEFAULT_MEMORY_LIMIT_BYTES
    gpus: int = 0
    pids_limit: int = DEFAULT_PIDS_LIMIT
    # Those of "memory", "cpu" and "pids" whose cap the caller asked for.
    asked: frozenset[str] = frozenset()


def resolve(caller: Requested, manifest: Requested = _SILENT) -> Resources:
    """The resources that one worker gets.

    Args:
        caller: what the request to run says. A cap that it names, itself or by a reservation, was asked for.
        manifest: what agent.yaml says, for what the caller leaves open. Its caps are the author's defaults: they
            hold where they can be enforced, and keep no agent from running where they cannot.

    Raises:
        InvalidArgument: a value that no worker can live with, or a reservation above its cap.
    """
    asked = {
        name
        for name, values in (
            ("memory", (caller.memory_bytes, caller.memory_limit_bytes)),
            ("cpu", (caller.cpu_millis, caller.cpu_limit_millis)),
            ("pids", (caller.pids_limit,)),
        )
        if any(value is not None for value in values)
    }
    requested = caller.over(manifest)
    memory = requested.memory_bytes
    memory_limit = requested.memory_limit_bytes if requested.memory_limit_bytes is not None else memory
    cpu = requested.cpu_millis
    cpu_limit = requested.cpu_limit_millis if requested.cpu_limit_millis is not None else cpu
    if memory_limit is None:
        memory_limit = DEFAULT_MEMORY_LIMIT_BYTES
    resources = Resources(
        cpu_millis=cpu if cpu is not None else min(DEFAULT_CPU_MILLIS, cpu_limit or DEFAULT_CPU_MILLIS),
        memory_bytes=memory if memory is not None else min(DEFAULT_MEMORY_BYTES, memory_limit),
        cpu_limit_millis=cpu_limit,
        memory_limit_bytes=memory_limit,
        gpus=requested.gpus or 0,
        pids_limit=requested.pids_limit if requested.pids_limit is not None else DEFAULT_PIDS_LIMIT,
        asked=frozenset(asked),
    )
    _check(resources)
    return resources


def _check(resources: Resources) -> None:
    size, share = units.format_size, units.format_cpu
    if resources.memory_limit_bytes < LEAST_MEMORY_LIMIT_BYTES:
        raise errors.InvalidArgument(
            f"a memory limit of {size(resources.memory_limit_bytes)} is below the "
            f"{size(LEAST_MEMORY_LIMIT_BYTES)} that Python with gRPC needs; ask for more"
        )
    for millis in (resources.cpu_millis, resources.cpu_limit_millis):
        if millis is not None and not LEAST_CPU_MILLIS <= millis <= MOST_CPU_MILLIS:
            raise errors.InvalidArgument(
                f"a CPU share of {share(millis)} is not between {share(LEAST_CPU_MILLIS)} "
                f"and {share(MOST_CPU_MILLIS)}"
            )
    if resources.memory_bytes > resources.memory_limit_bytes:
        raise errors.InvalidArgument(
            f"{size(resources.memory_bytes)} of memory cannot be reserved below a limit of "
            f"{size(resources.memory_limit_bytes)}; raise the limit or reserve less"
        )
    if resources.cpu_limit_millis is not None and resources.cpu_millis > resources.cpu_limit_millis:
        raise errors.InvalidArgument(
            f"{share(resources.cpu_millis)} CPU cannot be reserved below a limit of "
            f"{share(resources.cpu_limit_millis)}; raise the limit or reserve less"
        )
    if resources.pids_limit < LEAST_PIDS_LIMIT:
        raise errors.InvalidArgument(
            f"a limit of {resources.pids_limit} processes and threads is below the {LEAST_PIDS_LIMIT} "
            "that a worker needs"
        )
